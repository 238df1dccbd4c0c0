"""The reference's own promises: positions, context, choice and stopping."""

import pytest
import torch

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.reference.model import Context, ReferenceModel, unpack, yarn_frequencies


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ReferenceModel:
    folder = tmp_path_factory.mktemp("reference") / "tiny"
    write_random_checkpoint(folder)
    return ReferenceModel(folder)


PROMPT = list(range(40, 240, 3))


@pytest.mark.parametrize("chunk", [1, 3, 66, 67])
def test_chunks_give_the_same_logits(model, chunk):
    context = Context()
    with torch.no_grad():
        parts = [model.forward(PROMPT[i : i + chunk], context) for i in range(0, len(PROMPT), chunk)]
    assert context.num_tokens == len(PROMPT)
    torch.testing.assert_close(torch.cat(parts), model.logits(PROMPT), atol=1e-3, rtol=0)


def test_generation_continues_its_own_text(model):
    tokens = model.generate(PROMPT, 8)
    assert model.generate(PROMPT + tokens[:3], 5) == tokens[3:]


def test_the_hook_chooses_and_a_stop_token_ends(model):
    seen = []

    def second_best(logits, position):
        seen.append(position)
        return int(logits.topk(2).indices[1])

    tokens = model.generate(PROMPT, 6, choose=second_best)
    assert seen == list(range(len(PROMPT), len(PROMPT) + 6))
    assert model.generate(PROMPT, 6, choose=second_best, stop_ids=[tokens[2]]) == tokens[: tokens.index(tokens[2]) + 1]


def test_released_yarn_frequencies():
    yarn = {"factor": 64.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 4096}
    found = yarn_frequencies({"qk_rope_head_dim": 64, "rope_theta": 50000.0, "rope_scaling": yarn})
    checks = {0: 1.0, 1: 0.713111084911932, 8: 0.0668740304976422, 12: 0.011619159941997385, 31: 4.382206455794937e-07}
    for index, expected in checks.items():
        assert found[index].item() == pytest.approx(expected, rel=1e-6)


def test_nibbles_are_lowest_first():
    packed = torch.tensor([[1985229328, -19088744] * 2], dtype=torch.int32)
    assert unpack(packed, torch.tensor([[2.0]])).tolist() == [[2.0 * q for q in range(-8, 8)] * 2]
