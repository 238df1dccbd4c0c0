"""Keys and values of running prompts: bounded, dropped, and without influence on any bit."""

import asyncio

import pytest
import torch

import kernels
from kernels import ExpandedContext
from services.attention.layers.batch import Batch, Row, Segment, make_batch
from services.attention.layers.expanded import STALE_STEPS, ExpandedPrompts
from services.attention.layers.formulas import embed, forward_layers
from services.local.random_checkpoint.write import write_random_checkpoint
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
    assert expanded.begin([segment(4, 90, 90)]) == [None], "a lone chunk has none that would follow"
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


def test_the_prompt_travels_to_further_shards():
    batch = make_batch([Row([1, 2, 3], 0, [4], 1, False, 7, 90)], BLOCK_TOKENS)
    (found,) = Batch.from_bytes(batch.to_bytes()).segments
    assert (found.prompt, found.prompt_len, found.context_len) == (7, 90, 3)
