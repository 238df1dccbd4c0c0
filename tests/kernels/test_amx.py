"""The AMX kernels alone: tiles of every height, order of groups, decode attention by tiles.

Runs on the tile unit in plain C++ and, where the CPU has one, on the real unit; both give the same bits.
"""

import numpy as np
import pytest
import torch

from kernels.grid import on_grid
from kernels.native.library import usable_libraries
from tests.kernels.checks import assert_near, expert, paged_cache
from tests.kernels.conftest import MAKERS, implementation

NAMES = [name for name in ("amx", "amx-emulated") if name in MAKERS]
# One tile of each height, two of equal height from 9 on, and more; above 128 tokens there are several panels.
TOKENS = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 18, 20, 23, 27, 29, 31, 32, 33, 48, 129, 160]


@pytest.fixture(params=NAMES or [pytest.param(None, marks=pytest.mark.skip(reason="no AMX kernels here"))])
def amx(request):
    return implementation(request.param)


def float32(values):
    """Round float64 numbers to float32; return them as float64."""
    return values.astype(np.float32).astype(np.float64)


def group_products(rows, packed, scale):
    """Multiply rows by an INT4 matrix in the order that amx/int4.h defines; return [rows, out], float32 as float64.

    sum = fma(even chain + odd chain of a group, scale, sum), where a chain is a series of fused multiply-adds from
    zero. Products of bf16 numbers are exact in float64, so rounding after each step equals a fused operation.
    """
    nibbles = np.asarray(((packed[..., None] >> torch.arange(0, 32, 4)) & 15).flatten(-2).double() - 8)
    scales = np.asarray(scale.double())
    total = np.zeros((len(rows), len(nibbles)))
    for group in range(scales.shape[1]):
        chains = [np.zeros_like(total), np.zeros_like(total)]
        for column in range(32):
            at = group * 32 + column
            chains[column % 2] = float32(chains[column % 2] + rows[:, at : at + 1] * nibbles[:, at][None])
        total = float32(total + float32(chains[0] + chains[1]) * scales[:, group][None])
    return total


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 9])
def test_experts_take_groups_in_one_order(amx, groups):
    """Equal bits, except in rows where the float32 silu rounds an inner number to the other bf16 neighbour."""
    hidden, width, tokens = 32 * groups, 64, 40
    gate, gate_scale, up, up_scale, down, down_scale = tensors = expert(hidden, width)
    x = torch.randn(tokens, hidden).bfloat16()
    ids, weights = torch.zeros(tokens, 1, dtype=torch.int32), torch.ones(tokens, 1)
    actual = amx.expert_mlp(x, ids, weights, amx.pack_experts([tensors])).numpy()
    rows = x.double().numpy()
    gates, ups = group_products(rows, gate, gate_scale), group_products(rows, up, up_scale)
    inner = torch.from_numpy(gates / (1 + np.exp(-gates)) * ups).bfloat16().double().numpy()
    # The sum of a token's experts, here of one, is a whole number of steps.
    terms = torch.from_numpy(group_products(inner, down, down_scale))
    expected = on_grid(terms, torch.ones(()), torch.bfloat16).float().numpy()
    assert (actual == expected).all(axis=1).sum() >= tokens - 4


@pytest.mark.parametrize("groups", [1, 3, 7])
def test_every_height_of_a_tile(amx, oracle, groups):
    tensors = [expert(32 * groups, 96)]
    packed, plain = amx.pack_experts(tensors), oracle.pack_experts(tensors)
    x = torch.randn(max(TOKENS), 32 * groups).bfloat16()
    ids, weights = torch.zeros(len(x), 1, dtype=torch.int32), torch.ones(len(x), 1)
    alone = torch.cat([amx.expert_mlp(x[[i]], ids[[i]], weights[[i]], packed) for i in range(len(x))])
    assert_near(alone, oracle.expert_mlp(x, ids, weights, plain), torch.bfloat16, roundings=2)
    for tokens in TOKENS:
        assert torch.equal(amx.expert_mlp(x[:tokens], ids[:tokens], weights[:tokens], packed), alone[:tokens])


@pytest.mark.parametrize("num_in", [31, 32, 33, 64, 100, 1100])
def test_linear_with_a_short_last_step(amx, oracle, num_in):
    weight = torch.randn(70, num_in).bfloat16()
    packed, plain = amx.pack_linear(weight), oracle.pack_linear(weight)
    x = torch.randn(600, num_in).bfloat16()
    alone = torch.cat([amx.linear(row[None], packed) for row in x[:40]])
    for tokens in (17, 33, 40):
        assert torch.equal(amx.linear(x[:tokens], packed), alone[:tokens])
    together = amx.linear(x, packed, out_dtype=torch.float32)
    assert_near(together, oracle.linear(x, plain, out_dtype=torch.float32), torch.float32)
    assert torch.equal(together[:40].bfloat16(), alone)


@pytest.mark.parametrize("heads", [1, 16, 17, 64])
@pytest.mark.parametrize("width", [(512, 64), (64, 16), (40, 6)], ids=str)
def test_decode_attention_in_and_out_of_the_cache(amx, oracle, heads, width):
    """Whole tiles are read in place; short tiles, and tiles across blocks, from a copy."""
    latent, rope = width
    lens = [64, 1, 130, 31, 33]
    tables = torch.arange(5 * 9, dtype=torch.int32).view(5, 9)
    q = torch.randn(5, heads, latent + rope).bfloat16()
    results = []
    filled = torch.randn(5, 9 * 16, latent + rope).bfloat16()
    for block_tokens in (16, 48, 144):
        columns = 144 // block_tokens
        cache = paged_cache(45, block_tokens, latent + rope, torch.bfloat16)
        for row, length in enumerate(lens):
            for i in range(columns):
                used = max(0, min(block_tokens, length - i * block_tokens))
                cache[tables[row, i], :used] = filled[row, i * block_tokens : i * block_tokens + used]
        arguments = (q[..., :latent], q[..., latent:], cache, tables, torch.tensor(lens, dtype=torch.int32), 0.1)
        results.append(amx.mla_decode(*arguments))
        assert_near(results[-1], oracle.mla_decode(*arguments))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.skipif("amx" not in usable_libraries(), reason="needs a CPU with AMX")
def test_the_real_unit_gives_the_bits_of_the_emulated_one():
    real, emulated = implementation("amx"), implementation("amx-emulated")
    tensors, weight = [expert(256, 160) for _ in range(3)], torch.randn(300, 1100).bfloat16()
    for tokens in TOKENS:
        x, wide = torch.randn(tokens, 256).bfloat16(), torch.randn(tokens, 1100).bfloat16()
        ids, weights = torch.randint(-1, 3, (tokens, 2), dtype=torch.int32), torch.rand(tokens, 2)
        results = [kernels.expert_mlp(x, ids, weights, kernels.pack_experts(tensors)) for kernels in (real, emulated)]
        assert torch.equal(*results)
        assert torch.equal(*[kernels.linear(wide, kernels.pack_linear(weight)) for kernels in (real, emulated)])
