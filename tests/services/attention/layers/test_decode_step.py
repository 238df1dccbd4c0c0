"""A decode step in one native call gives what the layers give one by one, to the bit."""

import asyncio

import pytest
import torch

from kernels import decode_step
from kernels.choice import CPU
from kernels.native.kernels import NativeKernels
from services.attention.experts.experts import LocalExperts
from services.attention.layers.batch import Row, make_batch
from services.attention.layers.formulas import embed, forward_layers, routing
from services.attention.layers.local import LocalLayers
from services.attention.layers.peers import Peers
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.expert_shard import load_expert_shard
from tests.services.attention.layers.layer_session import BLOCK_TOKENS, NUM_BLOCKS, Model, other_dims

LATENT_EPS = 1e-6

pytestmark = pytest.mark.skipif(not isinstance(CPU, NativeKernels), reason="needs the native kernels")


@pytest.fixture(scope="module", params=["tiny", "other"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("step") / "model"
    write_random_checkpoint(path, dims="tiny" if request.param == "tiny" else other_dims(), seed=5)
    return path


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, folder):
    return Model(folder, request.param)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def decode_rows(lengths):
    """One generated token each, at the end of contexts of these lengths, in blocks of their own."""
    blocks, rows = iter(torch.randperm(NUM_BLOCKS).tolist()), []
    for length in lengths:
        own = [next(blocks) for _ in range(-(-length // BLOCK_TOKENS))]
        rows.append(Row([7 * length % 100], length - 1, own, 1, True))
    return make_batch(rows, BLOCK_TOKENS)


def random_cache(model):
    torch.manual_seed(1)
    return torch.randn(NUM_BLOCKS, len(model.layers), BLOCK_TOKENS, model.config.latent_dim).to(model.dtype)


def one_by_one(model, experts, batch, hidden, cache):
    how = {"step": 0, "micro_batch": 0, "latent_norm_eps": LATENT_EPS}
    return asyncio.run(forward_layers(hidden, batch, model.layers, cache, model.config, experts, **how))


@pytest.mark.parametrize("lengths", [[1], [70], [65, 1, 30, 64, 130], list(range(1, 33))], ids=["1", "70", "5", "32"])
def test_the_same_bits(model, threads, lengths):
    shard = load_expert_shard(model.checkpoint, range(model.config.n_routed_experts))
    cache, expected_cache, batch = random_cache(model), random_cache(model), decode_rows(lengths)
    hidden = embed(batch.token_ids, model.ends, model.dtype)
    before = hidden.clone()
    expected = one_by_one(model, LocalExperts(shard), batch, hidden, expected_cache)
    counts = shard.token_counts.copy()
    eps = {"eps": model.config.rms_norm_eps, "latent_eps": LATENT_EPS}
    step = decode_step(model.layers, shard, cache, routing(model.config), **eps)
    for times in (2, 3):
        found = step(hidden, batch.slots, batch.positions, batch.block_tables, batch.context_lens)
        assert torch.equal(found, expected) and torch.equal(cache, expected_cache)
        assert torch.equal(hidden, before), "the caller's tensor was changed"
        assert (shard.token_counts == times * counts).all() and counts.sum() > 0


def test_experts_in_another_order(model):
    ids = list(reversed(range(model.config.n_routed_experts)))
    batch, cache, expected_cache = decode_rows([9, 40]), random_cache(model), random_cache(model)
    hidden = embed(batch.token_ids, model.ends, model.dtype)
    shard = load_expert_shard(model.checkpoint, ids)
    expected = one_by_one(model, model.experts, batch, hidden, expected_cache)
    eps = {"eps": model.config.rms_norm_eps, "latent_eps": LATENT_EPS}
    step = decode_step(model.layers, shard, cache, routing(model.config), **eps)
    assert torch.equal(step(hidden, batch.slots, batch.positions, batch.block_tables, batch.context_lens), expected)


def test_no_step_without_all_experts_or_with_another_cache(model):
    routes, eps = routing(model.config), {"eps": 1e-5, "latent_eps": LATENT_EPS}
    some = load_expert_shard(model.checkpoint, range(3))
    assert decode_step(model.layers, some, random_cache(model), routes, **eps) is None
    fp8 = torch.zeros(2, len(model.layers), BLOCK_TOKENS, 8, dtype=torch.uint8)
    assert decode_step(model.layers, model.experts.shard, fp8, routes, **eps) is None


async def test_decode_rows_take_it_and_prompts_do_not(model, monkeypatch):
    shard = load_expert_shard(model.checkpoint, range(model.config.n_routed_experts))
    how = LATENT_EPS, None, Peers(b"layout", None), asyncio.get_running_loop()
    layers = LocalLayers(model.config, model.layers, random_cache(model), LocalExperts(shard), *how)
    assert layers._decode_step is not None
    calls = []
    monkeypatch.setattr(layers, "_decode_step", lambda hidden, *_: calls.append(len(hidden)) or hidden)
    for batch in (decode_rows([3, 20]), make_batch([Row([1, 2], 0, [0], 1, False)], BLOCK_TOKENS)):
        await layers.forward(0, 0, batch, embed(batch.token_ids, model.ends, model.dtype))
    assert calls == [2]
