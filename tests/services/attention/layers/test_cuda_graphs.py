"""Recorded steps: padded to a size, computed in place, and the same hidden states as without.

Recording itself needs a GPU, where the test of it records; elsewhere the work is its own replay.
"""

import pytest
import torch

from services.attention.experts.experts import LocalExperts
from services.attention.layers.batch import Row, make_batch
from services.attention.layers.cuda_graphs import (
    BLOCKS,
    ROWS,
    StepGraphs,
    pad,
    record_cuda,
    size_of,
    smallest,
    without_waiting,
)
from services.attention.layers.formulas import embed, forward_layers
from services.attention.layers.weights import load_ends, load_layers
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.expert_shard import load_expert_shard
from tests.services.attention.layers.layer_session import BLOCK_TOKENS, Model, text

NUM_BLOCKS = 40
SCRATCH = NUM_BLOCKS
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: records CUDA graphs")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs") / "tiny"
    write_random_checkpoint(folder, seed=3)
    return Model(folder)


def decode_rows(starts):
    """One token each after `starts` tokens of context, in blocks of their own."""
    blocks = iter(range(NUM_BLOCKS))
    return [
        Row([7 + start % 100], start, [next(blocks) for _ in range(start // BLOCK_TOKENS + 1)], True, True)
        for start in starts
    ]


@pytest.mark.parametrize("count, expected", [(1, 1), (5, 8), (17, 24), (512, 512), (513, None)])
def test_the_next_larger_size(count, expected):
    assert smallest(ROWS, count) == expected


def test_what_is_recorded():
    assert size_of(make_batch(decode_rows([0, 20, 40]), BLOCK_TOKENS)) == (4, BLOCKS[0])
    assert size_of(make_batch(decode_rows([BLOCK_TOKENS * 16]), BLOCK_TOKENS)) == (1, BLOCKS[1])
    chunk = Row([1, 2, 3], 0, [0], True, False)
    assert size_of(make_batch([*decode_rows([5]), chunk], BLOCK_TOKENS)) is None
    assert size_of(make_batch([], BLOCK_TOKENS)) is None
    long = Row([1], BLOCK_TOKENS * 4096, list(range(4097)), True, True)
    assert size_of(make_batch([long], BLOCK_TOKENS)) is None


def test_padding_touches_the_scratch_block_only():
    batch = make_batch(decode_rows([3, 33, 16]), BLOCK_TOKENS)
    padded = pad(batch, 8, 16, BLOCK_TOKENS, SCRATCH)
    assert padded.num_tokens == padded.num_decode == 8 and padded.block_tables.shape == (8, 16)
    for name in ("token_ids", "positions", "slots", "context_lens"):
        assert torch.equal(getattr(padded, name)[:3], getattr(batch, name))
    assert torch.equal(padded.block_tables[:3, : batch.block_tables.shape[1]], batch.block_tables)
    assert (padded.slots[3:] // BLOCK_TOKENS == SCRATCH).all() and (padded.block_tables[3:, 0] == SCRATCH).all()
    assert (padded.context_lens[3:] == 1).all()
    assert pad(batch, 3, 3, BLOCK_TOKENS, SCRATCH).num_tokens == 3


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])])
def test_a_recorded_step_computes_what_a_launched_one_does(model, where):
    """Two sizes, each used more than once, on a cache that begins as NaN but for the blocks in use."""
    generator, device = torch.Generator().manual_seed(0), torch.device(where)
    shape = NUM_BLOCKS + 1, len(model.layers), BLOCK_TOKENS, model.config.latent_dim
    cache = torch.randn(shape, generator=generator).to(device)
    cache[SCRATCH] = float("nan")
    plain = cache[:NUM_BLOCKS].clone()
    ends = load_ends(model.checkpoint, device)
    weights = load_layers(model.checkpoint, range(len(model.layers)), device)
    experts = LocalExperts(load_expert_shard(model.checkpoint, range(model.config.n_routed_experts), device))
    recordings = []

    def layers(cache):
        how = {"step": 0, "micro_batch": 0, "latent_norm_eps": 1e-6}
        parts = (weights, cache, model.config, experts)
        return lambda batch, hidden: without_waiting(forward_layers(hidden, batch, *parts, **how))

    def record(work):
        recordings.append(work())
        return record_cuda(work) if device.type == "cuda" else work

    graphs = StepGraphs(layers(cache), record, weights[0].input_norm.float()[None][:0], BLOCK_TOKENS, SCRATCH)
    for starts in ([0], [40], [3, 33, 16], [2], [50, 1, 7], [9, 8, 7, 6]):
        batch = make_batch(decode_rows(starts), BLOCK_TOKENS)
        hidden = embed(batch.token_ids.to(device), ends, torch.float32)
        replayed = graphs.run(batch, hidden)
        launched = layers(plain)(batch.to(device), hidden)
        torch.testing.assert_close(replayed, launched, rtol=1e-5, atol=1e-5)
    assert len(recordings) == 2
    torch.testing.assert_close(cache[:NUM_BLOCKS], plain, rtol=1e-5, atol=1e-5)
    prompt = make_batch([Row(text(1, 20), 0, [0, 1], True, False)], BLOCK_TOKENS)
    assert graphs.run(prompt, embed(prompt.token_ids, model.ends, torch.float32)) is None


def test_a_step_that_waits_is_not_recorded():
    class Never:
        def __await__(self):
            yield

    async def waits():
        await Never()

    async def ready():
        return 3

    assert without_waiting(ready()) == 3
    with pytest.raises(AssertionError, match="must not wait"):
        without_waiting(waits())
