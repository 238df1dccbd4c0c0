"""The routed experts of every implementation against the reference."""

import math

import pytest
import torch

from tests.kernels.checks import assert_near, expert, few

SHAPES = [(32, 32), (96, 64), (256, 160)]


def assignments(tokens, top_k, num_experts):
    """Draw distinct experts for each token, with -1 for some that another shard holds."""
    rows = [torch.randperm(num_experts + top_k)[:top_k] for _ in range(tokens)]
    ids = torch.stack(rows).int() if rows else torch.zeros(0, top_k, dtype=torch.int32)
    return ids.masked_fill(ids >= num_experts, -1), torch.rand(tokens, top_k)


def near(actual, expected, dtype):
    """Compare float32 results; numbers between the products are rounded to the dtype of the run, by aten twice."""
    assert_near(actual, expected, dtype, roundings=2)


@pytest.mark.parametrize("hidden, width", SHAPES)
@pytest.mark.parametrize("num_experts, top_k", [(1, 1), (5, 2), (9, 4)])
def test_expert_mlp(fast, oracle, dtype, hidden, width, num_experts, top_k):
    tensors = [expert(hidden, width) for _ in range(num_experts)]
    packed, plain = fast.pack_experts(iter(tensors)), oracle.pack_experts(tensors)
    assert (packed.num_experts, packed.hidden, packed.width) == (num_experts, hidden, width)
    assert packed.nbytes == plain.nbytes
    for tokens in few(fast, (0, 1, 5, 13, 60), interpreted=(0, 17 if hidden * num_experts < 500 else 1)):
        x = torch.randn(tokens, hidden).to(dtype)
        ids, weights = assignments(tokens, top_k, num_experts)
        actual = fast.expert_mlp(x, ids, weights, packed)
        near(actual, oracle.expert_mlp(x, ids, weights, plain), dtype)


def test_tokens_without_a_local_expert_get_zeros(kernels, dtype):
    packed = kernels.pack_experts([expert(32, 32), expert(32, 32)])
    ids = torch.tensor([[-1, -1], [0, -1], [-1, -1]], dtype=torch.int32)
    out = kernels.expert_mlp(torch.randn(3, 32).to(dtype), ids, torch.rand(3, 2), packed)
    assert out.dtype == torch.float32
    assert (out[[0, 2]] == 0).all() and (out[1] != 0).any()


def test_nobody_has_a_local_expert(kernels, dtype):
    packed = kernels.pack_experts([expert(32, 32)])
    ids = torch.full((4, 3), -1, dtype=torch.int32)
    assert (kernels.expert_mlp(torch.randn(4, 32).to(dtype), ids, torch.rand(4, 3), packed) == 0).all()


def test_no_experts_at_all(kernels):
    packed = kernels.pack_experts([])
    ids = torch.full((2, 1), -1, dtype=torch.int32)
    assert (kernels.expert_mlp(torch.randn(2, 32), ids, torch.rand(2, 1), packed) == 0).all()


def test_everybody_wants_the_same_expert(fast, oracle, dtype):
    tensors = [expert(64, 32) for _ in range(3)]
    packed, plain = fast.pack_experts(tensors), oracle.pack_experts(tensors)
    for tokens in few(fast, (300, 2500), interpreted=(129,)):
        x, weights = torch.randn(tokens, 64).to(dtype), torch.rand(tokens, 2)
        ids = torch.tensor([2, 0], dtype=torch.int32).expand(tokens, 2)
        near(fast.expert_mlp(x, ids, weights, packed), oracle.expert_mlp(x, ids, weights, plain), dtype)


def packed_words(weight):
    """Pack signed numbers -8..7 [out, in] as in the checkpoint."""
    nibbles = (weight + 8).view(weight.shape[0], -1, 8)
    return (nibbles << torch.arange(0, 32, 4)).sum(-1).to(torch.int32)


def test_every_nibble_in_every_column(fast):
    """A one-hot token reads one column. The gate is 4 for all rows; `up` has each number once in 16 columns."""
    hidden = width = 32
    one = torch.ones(32, 1).bfloat16()
    up = (torch.arange(width)[:, None] * 3 + torch.arange(hidden)) % 16 - 8
    gate = torch.full((width, hidden), 4)
    down = torch.eye(32, dtype=torch.int64)
    tensors = (packed_words(gate), one, packed_words(up), one, packed_words(down), one)
    ids, weights = torch.zeros(32, 1, dtype=torch.int32), torch.ones(32, 1)
    out = fast.expert_mlp(torch.eye(32), ids, weights, fast.pack_experts([tensors]))
    silu_of_4 = 4 / (1 + math.exp(-4))
    torch.testing.assert_close(out, up.T * silu_of_4, rtol=1e-4, atol=1e-4)


def test_float32_is_not_rounded_to_bfloat16(fast, oracle):
    tensors = [expert(64, 64)]
    x = torch.randn(3, 64)
    ids, weights = torch.zeros(3, 1, dtype=torch.int32), torch.ones(3, 1)
    plain = oracle.pack_experts(tensors)
    exact = oracle.expert_mlp(x, ids, weights, plain)
    rounded = oracle.expert_mlp(x.bfloat16().float(), ids, weights, plain)
    error = (fast.expert_mlp(x, ids, weights, fast.pack_experts(tensors)) - exact).norm()
    assert error < (rounded - exact).norm() / 100


def test_strided_tokens(fast, oracle, dtype):
    tensors = [expert(64, 32) for _ in range(2)]
    whole = torch.randn(9, 150).to(dtype)
    ids, weights = assignments(9, 2, 2)
    actual = fast.expert_mlp(whole[:, 50:114], ids, weights, fast.pack_experts(tensors))
    near(actual, oracle.expert_mlp(whole[:, 50:114], ids, weights, oracle.pack_experts(tensors)), dtype)


def test_nan_stays_with_its_token(fast, dtype):
    packed = fast.pack_experts([expert(32, 32), expert(32, 32)])
    x = torch.randn(20, 32).to(dtype)
    x[7, 3] = float("nan")
    ids = torch.tensor([[0, 1]], dtype=torch.int32).expand(20, 2)
    out = fast.expert_mlp(x, ids, torch.rand(20, 2), packed)
    assert out[7].isnan().all()
    assert out[torch.arange(20) != 7].isfinite().all()


def test_a_token_is_the_same_in_every_message(native, dtype, threads):
    packed = native.pack_experts([expert(256, 96) for _ in range(6)])
    x = torch.randn(90, 256).to(dtype)
    ids, weights = assignments(90, 3, 6)
    threads(1)
    alone = torch.cat([native.expert_mlp(x[[i]], ids[[i]], weights[[i]], packed) for i in range(90)])
    for num_threads in (1, 2, 3):
        threads(num_threads)
        for tokens in (2, 3, 8, 31, 90):
            together = native.expert_mlp(x[:tokens], ids[:tokens], weights[:tokens], packed)
            assert torch.equal(together, alone[:tokens])
        shuffled = torch.randperm(90)
        assert torch.equal(native.expert_mlp(x[shuffled], ids[shuffled], weights[shuffled], packed), alone[shuffled])
