"""Several operations in one call give the same bits as one by one."""

from dataclasses import dataclass

import pytest
import torch

from kernels import HeadWeight, LinearWeight, fused
from tests.kernels.checks import paged_cache

HIDDEN, Q_LORA, LATENT, ROPE, HEADS, NOPE, V = 40, 24, 32, 8, 3, 20, 12


@dataclass(frozen=True)
class Weights:
    qkv_a: LinearWeight
    q_a_norm: torch.Tensor
    q_b: LinearWeight
    kv_a_norm: torch.Tensor
    key_absorbed: HeadWeight
    value_up: HeadWeight
    o: LinearWeight
    inv_freq: torch.Tensor
    softmax_scale: float = 0.2


def random_weight(*shape):
    return torch.randn(shape).bfloat16() * 0.2


@pytest.fixture
def one_by_one(native, monkeypatch):
    """Return a function of `fused` that calls this implementation's single operations."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(fused, "NativeKernels", ())
            patch.setattr(fused, "kernels_for", lambda _: native)
            return function(*arguments)

    return call


@pytest.mark.parametrize("rows", [0, 1, 2, 17])
def test_mlp(native, one_by_one, dtype, rows):
    x = torch.randn(rows, HIDDEN + 3).to(dtype)[:, :HIDDEN]
    gate_up, down = native.pack_linear(random_weight(2 * 24, HIDDEN)), native.pack_linear(random_weight(HIDDEN, 24))
    assert torch.equal(native.mlp(x, gate_up, down), one_by_one(fused.mlp, x, gate_up, down))


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("lens", [[], [1], [70], [65, 1, 30, 64, 130]], ids=str)
def test_absorbed_attention(native, one_by_one, dtype, threads, lens, num_threads):
    threads(num_threads)
    rows, block_tokens = len(lens), 16
    weights = Weights(
        native.pack_linear(random_weight(Q_LORA + LATENT + ROPE, HIDDEN)),
        random_weight(Q_LORA),
        native.pack_linear(random_weight(HEADS * (NOPE + ROPE), Q_LORA)),
        random_weight(LATENT),
        native.pack_heads(random_weight(HEADS, LATENT, NOPE)),
        native.pack_heads(random_weight(HEADS, V, LATENT)),
        native.pack_linear(random_weight(HIDDEN, HEADS * V)),
        50000.0 ** (-torch.arange(0, ROPE, 2) / ROPE),
    )
    columns = 9
    tables = torch.arange(rows * columns, dtype=torch.int32).view(rows, columns)
    positions = torch.tensor(lens, dtype=torch.int64) - 1
    blocks = tables[torch.arange(rows), positions // block_tokens].long()
    slots = blocks * block_tokens + positions % block_tokens
    filled = torch.randn(rows * columns, block_tokens, LATENT + ROPE).to(dtype)
    caches = [paged_cache(rows * columns, block_tokens, LATENT + ROPE, dtype).copy_(filled) for _ in range(2)]
    rest = slots, positions, tables, torch.tensor(lens, dtype=torch.int32), 1e-6
    x = torch.randn(rows, HIDDEN).to(dtype)
    together = native.absorbed_attention(x, weights, caches[0], *rest)
    assert torch.equal(together, one_by_one(fused.absorbed_attention, x, weights, caches[1], *rest))
    assert torch.equal(caches[0], caches[1])
    assert torch.equal(caches[0], filled) == (rows == 0)
