"""Nano's answers are those of transformers' `kimi_k25`: 100 held-out prompts, some with pictures, greedy sampling.

transformers computes in float32, with the INT4 experts unpacked into dense weights. At each place of our answer it
gives the token that it would choose after the same tokens.

- In float32 our token is the same. Another order of sums does not change a logit by one part in 10,000.
- In bfloat16, the dtype of `moonshard up`, another token is accepted where the two logits differ by less than a step of
  bf16, one part in 128.
"""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from protos.media_pb2 import MediaSpan
from services.checkpoint.config import load_config
from services.checkpoint.markers import Marker
from services.local.checkpoints import NANO
from services.model import int4
from services.model.checkpoint import Checkpoint
from services.nano.train.rendering import Example, Item, example
from services.nano.train.sample import Sample
from services.nano.train.skills import GENERATORS
from services.tokenizer.vocabulary import load_vocabulary
from services.vision.grid import load_media_config
from services.vision.preprocess import value_table
from services.vision.weights import load_vision
from tests.cluster.client import TokenClient
from tests.cluster.harness import Cluster, small_topology
from tests.cluster.pictures import png
from tests.reference.test_against_transformers import transformers_model
from tests.reference.transformers_vision import TransformersVision

NUM_PROMPTS = 100
NUM_TOKENS = 24
AT_ONCE = 8
# A video is compressed on its way to the cluster, so its frames differ from those that transformers would get.
SKILLS = [skill for skill in GENERATORS if skill != "video"]
TIE = {"float32": 1e-4, "bfloat16": 2**-7}  # of the larger logit


@dataclass(frozen=True)
class Prompt:
    """A held-out sample without its answer."""

    skill: str
    token_ids: list[int]
    sample: Sample
    items: Sequence[Item]
    places: Sequence[int]


def prompts() -> Iterator[Prompt]:
    """Yield prompts of every skill in turn, endlessly."""
    vocabulary, config = load_vocabulary(NANO), load_media_config(NANO, load_config(NANO).vision)
    for seed in itertools.count():
        for skill in SKILLS:
            sample = GENERATORS[skill]("held_out", seed)
            whole = example(sample, vocabulary, config)
            yield Prompt(skill, whole.token_ids[: start_of_answer(whole)], sample, whole.items, whole.places)


def start_of_answer(whole: Example) -> int:
    """Return the place of the first token of the last answer."""
    start = len(whole.targets) - whole.targets[::-1].index(True)
    while whole.targets[start - 1]:
        start -= 1
    return start


@pytest.fixture(scope="module")
def asked() -> list[Prompt]:
    return list(itertools.islice(prompts(), NUM_PROMPTS))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def answers(request, asked, tmp_path_factory) -> tuple[str, list[list[int]]]:
    """Return a dtype and the answers of a cluster in it, with separate prefill and decode and two expert shards."""
    if request.param == "bfloat16":
        return request.param, asyncio.run(answer_all(request.getfixturevalue("nano_cluster"), asked))
    log_path = tmp_path_factory.mktemp("exact") / "cluster.log"
    with Cluster(small_topology(NANO, visions=1), log_path) as cluster:
        cluster.wait_ready()
        return request.param, asyncio.run(answer_all(cluster, asked))


async def answer_all(cluster: Cluster, asked: Sequence[Prompt]) -> list[list[int]]:
    stop_id = load_vocabulary(NANO).marker_ids[Marker.END]
    async with TokenClient(cluster) as client:
        room = asyncio.Semaphore(AT_ONCE)

        async def answer(prompt: Prompt) -> list[int]:
            async with room:
                media = [
                    MediaSpan(offset=place, media=(await client.encode(png(image))).media)
                    for place, image in zip(prompt.places, prompt.sample.images, strict=True)
                ]
                return await client.generate(prompt.token_ids, NUM_TOKENS, media=media, stop_token_ids=[stop_id])

        return await asyncio.gather(*map(answer, asked))


class Theirs:
    """The model of transformers in float32."""

    def __init__(self) -> None:
        self._model = transformers_model(NANO, torch.float32)
        self._tower = TransformersVision(*load_vision(Checkpoint(NANO), torch.float32))

    @torch.no_grad()
    def logits(self, prompt: Prompt, answer: Sequence[int]) -> Tensor:
        """Return logits at each place of the answer, [tokens, vocabulary]."""
        hidden = self._model.get_input_embeddings()(torch.tensor([[*prompt.token_ids, *answer]]))
        values = torch.from_numpy(value_table())
        for place, item in zip(prompt.places, prompt.items, strict=True):
            grid = (item.grid.frames, item.grid.rows, item.grid.columns)
            features = self._tower.encode(values[torch.from_numpy(item.patches).long()], [grid])
            hidden[0, place : place + len(features)] = features
        return self._model(inputs_embeds=hidden).logits[0, len(prompt.token_ids) - 1 : -1]


def test_every_token_is_theirs(answers, asked):
    dtype, found = answers
    theirs = Theirs()
    differences = [
        (prompt.skill, place, chosen.item(), best.item())
        for prompt, answer in zip(asked, found, strict=True)
        for place, (row, token_id) in enumerate(zip(theirs.logits(prompt, answer), answer, strict=True))
        if (best := row.max()) - (chosen := row[token_id]) > TIE[dtype] * best.abs()
    ]
    assert differences == []
    assert sum(map(len, found)) > 5 * NUM_PROMPTS


def test_packed_experts_are_the_unpacked_ones_bit_for_bit():
    """The unpacked experts lose nothing: packing them again gives the same bits."""
    checkpoint = Checkpoint(NANO)
    packed_names = [name for name in checkpoint.names if name.endswith(".weight_packed")]
    assert packed_names
    for name in packed_names:
        packed = checkpoint.tensor(name)
        scale = checkpoint.tensor(name.replace("_packed", "_scale"))
        dense = int4.unpack_int4(packed).float() * scale.float().repeat_interleave(32, dim=1)
        again, scale_again = int4.quantize(dense)
        assert torch.equal(again, packed) and torch.equal(scale_again, scale), name
