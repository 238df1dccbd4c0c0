"""Keys and values of running prompts: bounded, dropped, and without influence on any bit."""

import asyncio

import pytest
import torch

import kernels
from kernels import ExpandedContext
from services.attention.layers import local
from services.attention.layers.batch import Batch, Row, Segment, make_batch
from services.attention.layers.expanded import STALE_STEPS, ExpandedPrompts
from services.attention.layers.formulas import embed, forward_layers
from services.attention.layers.local import LocalLayers
from services.attention.layers.peers import Peers
from services.local.random_checkpoint.write import write_random_checkpoint
from services.runtime.errors import Unavailable
from tests.services.attention.layers.layer_session import BLOCK_TOKENS, NUM_BLOCKS, Model, text

PROMPT = 150
SIZES = [40, 1, 64, 45]


def segment(prompt, context_len, prompt_len, num_tokens=1):
    return Segment(slice(0, num_tokens), torch.zeros(1, dtype=torch.int32), context_len, prompt, prompt_len)


def test_a_context_projects_only_what_is_new():
    latents, seen = torch.randn(90, 8), []

    def project(rows):
        seen.append(len(rows))
        return rows.repeat(1, 3)

    context = ExpandedContext(64, 24, torch.float32)
    for length in (20, 21, 64, 70, 90):
        assert torch.equal(context.extend(latents[:length], project), latents[:length].repeat(1, 3))
    assert seen == [20, 1, 43, 6, 26]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("expanded") / "model"
    write_random_checkpoint(path, seed=5)
    return Model(path, request.param)


def computed(model, sizes, expanded):
    """Hidden states of a prompt in chunks of these sizes, beside a second prompt of one chunk."""
    torch.manual_seed(0)
    cache = torch.zeros(NUM_BLOCKS, len(model.layers), BLOCK_TOKENS, model.config.latent_dim, dtype=model.dtype)
    tokens, other = text(1, PROMPT), text(2, 9)
    blocks, found, start = list(range(-(-PROMPT // BLOCK_TOKENS))), [], 0
    for size in sizes:
        rows = [
            Row(tokens[start : start + size], start, blocks, 0, False, 1, PROMPT),
            Row(other, 0, [40], 1, False, 2, len(other)),
        ]
        batch = make_batch(rows, BLOCK_TOKENS)
        kept = expanded.begin(batch.segments) if expanded is not None else ()
        hidden = asyncio.run(
            forward_layers(
                embed(batch.token_ids, model.ends, model.dtype),
                batch, model.layers, cache, model.config, model.experts,
                step=0, micro_batch=0, latent_norm_eps=1e-6, expanded=kept,
            )
        )  # fmt: skip
        if expanded is not None:
            expanded.end(batch.segments)
        found.append(hidden[:size])
        start += size
    return torch.cat(found)


def prompts(model, num_tokens):
    widths = [model.config.expanded_dim] * len(model.layers)
    return ExpandedPrompts(widths, model.dtype, num_tokens * sum(widths) * model.dtype.itemsize)


@pytest.mark.skipif(
    not kernels.describe(torch.device("cpu"))["linear"].startswith("native"),
    reason="needs the native kernels: only they promise that a row's bits do not depend on the batch",
)
@pytest.mark.parametrize("room", [0, 1, 50, PROMPT, 1000], ids=lambda room: f"room-for-{room}")
def test_no_bit_depends_on_what_is_kept(model, room):
    expected = computed(model, [PROMPT], None)
    expanded = prompts(model, room)
    assert torch.equal(computed(model, SIZES, expanded), expected)
    assert len(expanded) == 0 and expanded.num_tokens == 0


def test_each_token_is_projected_once(model, monkeypatch):
    seen = []
    extend = ExpandedContext.extend

    def count(self, latents, project):
        return extend(self, latents, lambda rows: seen.append(len(rows)) or project(rows))

    monkeypatch.setattr(ExpandedContext, "extend", count)
    computed(model, SIZES, prompts(model, PROMPT))
    assert sum(seen) == PROMPT * len(model.layers)


def test_memory_is_bounded_and_shared():
    expanded = ExpandedPrompts([6, 2], torch.float32, 100 * 8 * 4)
    assert (
        expanded.begin([segment(1, 10, 70), segment(2, 10, 70), segment(3, 10, 70), segment(0, 9, 90)])[2:]
        == [None] * 2
    )
    assert (len(expanded), expanded.num_tokens) == (2, 100)
    expanded.end([segment(1, 70, 70)])
    assert (len(expanded), expanded.num_tokens) == (1, 30)
    assert expanded.begin([segment(4, 90, 90)]) == [None], "no later chunk would use it"
    expanded.clear()
    assert (len(expanded), expanded.num_tokens) == (0, 0)


def test_a_prompt_that_does_not_go_on_gives_way():
    expanded = ExpandedPrompts([8], torch.float32, 100 * 8 * 4)
    expanded.begin([segment(1, 10, 90)])
    for step in range(STALE_STEPS + 2):
        (kept,) = expanded.begin([segment(2 + step, 10, 80)])
        given = expanded.num_tokens
        expanded.end([segment(2 + step, 80, 80)])
    assert kept is not None and given == 80 and expanded.num_tokens == 0


class LosingExperts:
    """Experts that fail their calls once they are lost."""

    is_lost = False

    def __init__(self, experts):
        self._experts = experts

    def dispatch(self, *call):
        if self.is_lost:
            raise Unavailable("lost")
        return self._experts.dispatch(*call)


async def test_a_step_that_fails_keeps_no_memory(model, monkeypatch):
    """Neither that of a prompt's last chunk, nor that of a prompt whose next chunk never comes."""
    monkeypatch.setattr(local, "IDLE_S", 0.05)
    cache = torch.zeros(NUM_BLOCKS, len(model.layers), BLOCK_TOKENS, model.config.latent_dim, dtype=model.dtype)
    experts, expanded, loop = LosingExperts(model.experts), prompts(model, 1000), asyncio.get_running_loop()
    layers = LocalLayers(
        model.config, model.layers, cache, experts, 1e-6, None, Peers(b"f", None), loop, expanded=expanded
    )  # fmt: skip

    async def run(start, prompt):
        batch = make_batch([Row(text(1, 10), start, [0, 1], 0, False, prompt, 20)], BLOCK_TOKENS)
        await layers.forward(0, 0, batch, embed(batch.token_ids, model.ends, model.dtype))

    await run(0, 1)
    experts.is_lost = True
    with pytest.raises(Unavailable):
        await run(10, 1)
    assert len(expanded) == 0
    with pytest.raises(Unavailable):
        await run(0, 2)
    assert len(expanded) == 1
    async with asyncio.timeout(10):
        while len(expanded):
            await asyncio.sleep(0.01)


def test_the_prompt_travels_to_further_shards():
    batch = make_batch([Row([1, 2, 3], 0, [4], 1, False, 7, 90)], BLOCK_TOKENS)
    (found,) = Batch.from_bytes(batch.to_bytes()).segments
    assert (found.prompt, found.prompt_len, found.context_len) == (7, 90, 3)
