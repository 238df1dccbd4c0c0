"""Norm, SwiGLU, rotary embedding and cache writes of every implementation against the reference."""

import pytest
import torch

from tests.kernels.checks import assert_near, paged_cache

WIDTHS = [1, 15, 16, 17, 64, 1000]


@pytest.mark.parametrize("rows", [0, 1, 3, 70])
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(fast, oracle, dtype, rows, width):
    x, weight = torch.randn(rows, width).to(dtype) * 3, torch.randn(width).bfloat16()
    assert_near(fast.rms_norm(x, weight, 1e-5), oracle.rms_norm(x, weight, 1e-5))


def test_rms_norm_of_more_dimensions_and_of_a_slice(fast, oracle, dtype):
    x, weight = torch.randn(3, 5, 48).to(dtype), torch.randn(32).bfloat16()
    for view in (x[..., 8:40], x[:, 2, 8:40], x[:, 2, :32].contiguous()[None]):
        assert_near(fast.rms_norm(view, weight, 1e-6), oracle.rms_norm(view, weight, 1e-6))


def test_rms_norm_of_bf16_is_the_reference_to_the_bit(fast, oracle):
    x, weight = torch.randn(50, 128).bfloat16(), torch.randn(128).bfloat16()
    same = (fast.rms_norm(x, weight, 1e-5) == oracle.rms_norm(x, weight, 1e-5)).double().mean()
    assert same > 0.999  # another order of the sum may round a value to its neighbour


@pytest.mark.parametrize("rows, width", [(0, 16), (1, 1), (3, 17), (70, 1000)])
def test_add_rms_norm(fast, oracle, dtype, rows, width):
    x, residual = torch.randn(2, rows, width).to(dtype)
    weight = torch.randn(width).bfloat16()
    actual, expected = (kernels.add_rms_norm(x, residual, weight, 1e-5) for kernels in (fast, oracle))
    assert torch.equal(actual[0], expected[0])
    assert_near(actual[1], expected[1])


@pytest.mark.parametrize("rows", [0, 1, 70])
@pytest.mark.parametrize("width", WIDTHS)
def test_silu_mul(fast, oracle, dtype, rows, width):
    gate_up = torch.randn(rows, 2 * width).to(dtype) * 4
    assert_near(fast.silu_mul(gate_up), oracle.silu_mul(gate_up))


def test_silu_mul_of_large_values(fast, oracle):
    gate_up = torch.tensor([[-200.0, -50.0, 0.0, 50.0, 200.0, 1e30] * 4 + [1.0] * 24])
    assert_near(fast.silu_mul(gate_up), oracle.silu_mul(gate_up))


def test_nan_is_not_swallowed(fast):
    gate_up = torch.ones(1, 64)
    gate_up[0, 3] = gate_up[0, 40] = float("nan")
    assert fast.silu_mul(gate_up)[0, [3, 8]].isnan().all()
    assert fast.rms_norm(gate_up, torch.ones(64).bfloat16(), 1e-5).isnan().all()


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("heads, width", [(1, 2), (1, 64), (5, 64), (3, 10)])
def test_rope(fast, oracle, dtype, tokens, heads, width):
    whole = torch.randn(tokens, heads, 24 + width).to(dtype)
    positions = torch.randint(0, 262144, (tokens,))
    inv_freq = 50000.0 ** (-torch.arange(0, width, 2) / width)
    x = whole[..., 24:]
    assert_near(fast.rope(x, positions, inv_freq), oracle.rope(x, positions, inv_freq))
    assert_near(fast.rope(x.contiguous(), positions, inv_freq), oracle.rope(x, positions, inv_freq))


def test_write_latent(fast, oracle, dtype):
    latent, rope_key = torch.randn(5, 16).to(dtype), torch.randn(5, 1, 12).to(dtype)[:, 0, 2:8]
    slots = torch.tensor([11, 0, 4, 7, 3])
    actual, expected = paged_cache(3, 4, 22, dtype), paged_cache(3, 4, 22, dtype)
    fast.write_latent(actual, slots, latent, rope_key)
    oracle.write_latent(expected, slots, latent, rope_key)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert actual.flatten(0, 1)[slots].isfinite().all()
    assert actual.isnan().sum() == 7 * 22


@pytest.mark.parametrize("slots", [[], [11], [11, 0, 4, 7, 3]], ids=str)
def test_norm_rope_store(fast, oracle, dtype, slots):
    tokens = len(slots)
    whole, weight = torch.randn(tokens, 30).to(dtype), torch.randn(20).bfloat16()
    positions, inv_freq = torch.randint(0, 262144, (tokens,)), 50000.0 ** (-torch.arange(0, 6, 2) / 6)
    caches = [paged_cache(3, 4, 26, dtype) for _ in range(2)]
    arguments = (whole[:, :20], whole[:, 20:26], weight, 1e-6, positions, inv_freq)
    for kernels, cache in zip((fast, oracle), caches, strict=True):
        kernels.norm_rope_store(cache, torch.tensor(slots, dtype=torch.int64), *arguments)
    actual, expected = (cache.flatten(0, 1) for cache in caches)
    assert_near(actual[slots], expected[slots])
    assert actual.isnan().sum() == (12 - tokens) * 26


def test_write_latent_of_nothing(fast, dtype):
    cache = paged_cache(2, 4, 6, dtype)
    fast.write_latent(cache, torch.empty(0, dtype=torch.int64), cache.new_empty(0, 4), cache.new_empty(0, 2))
    assert cache.isnan().all()


@pytest.mark.parametrize("width", [17, 512])
def test_rows_do_not_see_each_other(native, dtype, threads, width):
    x, weight = torch.randn(300, 2 * width).to(dtype), torch.randn(2 * width).bfloat16()
    threads(2)
    norm, product = native.rms_norm(x, weight, 1e-5), native.silu_mul(x)
    threads(1)
    for row in (0, 7, 299):
        assert torch.equal(native.rms_norm(x[row : row + 1], weight, 1e-5)[0], norm[row])
        assert torch.equal(native.silu_mul(x[row : row + 1])[0], product[row])
