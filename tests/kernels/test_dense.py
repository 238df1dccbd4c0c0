"""`linear` and `head_linear` of every implementation against the reference, and their independence of the batch."""

import pytest
import torch

from tests.kernels.checks import assert_near

# Sizes near those of tiles: 16 rows, 2 columns, 4 blocks of rows, 6 or 12 tokens, 512 columns a pass, 128 rows a task.
SHAPES = [(1, 1), (15, 3), (16, 2), (17, 33), (64, 31), (65, 64), (129, 513), (300, 1100)]
TOKENS = [0, 1, 2, 3, 5, 6, 7, 11, 12, 13, 130]


@pytest.mark.parametrize("num_out, num_in", SHAPES)
def test_linear(fast, oracle, dtype, num_out, num_in):
    weight = torch.randn(num_out, num_in).bfloat16()
    packed, plain = fast.pack_linear(weight), oracle.pack_linear(weight)
    assert packed.shape == (num_out, num_in)
    assert packed.nbytes >= weight.nbytes
    for tokens in TOKENS:
        x = torch.randn(tokens, num_in).to(dtype)
        assert_near(fast.linear(x, packed), oracle.linear(x, plain))


def test_linear_to_float32(fast, oracle, dtype):
    weight, x = torch.randn(40, 96).bfloat16(), torch.randn(7, 96).to(dtype)
    actual = fast.linear(x, fast.pack_linear(weight), out_dtype=torch.float32)
    assert_near(actual, oracle.linear(x, oracle.pack_linear(weight), out_dtype=torch.float32))


def test_float32_is_not_rounded_to_bfloat16(fast):
    x = torch.tensor([[1.0 + 2**-20, 2**-22]])
    weight = fast.pack_linear(torch.tensor([[1.0, 1.0], [3.0, 0.0]]).bfloat16())
    assert fast.linear(x, weight).tolist() == [[1.0 + 2**-20 + 2**-22, 3.0 + 3 * 2**-20]]


def test_linear_reads_strided_rows(fast, oracle, dtype):
    whole, weight = torch.randn(9, 200).to(dtype), torch.randn(33, 64).bfloat16()
    packed, plain = fast.pack_linear(weight), oracle.pack_linear(weight)
    for x in (whole[:, 100:164], whole[::2, :64], whole.T[:64].T[:3]):
        assert_near(fast.linear(x, packed), oracle.linear(x, plain))


def test_pack_linear_takes_a_slice(fast, oracle):
    whole, x = torch.randn(70, 90).bfloat16(), torch.randn(3, 40)
    for weight in (whole[5:38, 10:50], whole[:40, :30].T):
        inputs = x[:, : weight.shape[1]]
        actual = fast.linear(inputs, fast.pack_linear(weight))
        assert_near(actual, oracle.linear(inputs, oracle.pack_linear(weight)))


def test_a_packed_weight_does_not_follow_its_source(native):
    weight = torch.ones(2, 2).bfloat16()
    packed = native.pack_linear(weight)
    weight.zero_()
    assert native.linear(torch.ones(1, 2), packed).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("heads, num_out, num_in", [(1, 1, 1), (3, 17, 5), (5, 16, 64), (16, 128, 40)])
def test_head_linear(fast, oracle, dtype, heads, num_out, num_in):
    weight = torch.randn(heads, num_out, num_in).bfloat16()
    packed, plain = fast.pack_heads(weight), oracle.pack_heads(weight)
    assert packed.shape == (heads, num_out, num_in)
    for tokens in (0, 1, 2, 7, 40):
        whole = torch.randn(tokens, heads, num_in + 3).to(dtype)
        for x in (whole[..., :num_in], whole[..., 3:].contiguous()):
            assert_near(fast.head_linear(x, packed), oracle.head_linear(x, plain))


def test_nan_stays_in_its_row(fast, dtype):
    x = torch.randn(9, 33).to(dtype)
    x[4, 32] = float("nan")
    out = fast.linear(x, fast.pack_linear(torch.randn(20, 33).bfloat16()))
    assert out[4].isnan().all()
    assert out[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("num_out, num_in", [(17, 33), (200, 1100)])
def test_a_row_is_the_same_in_every_batch(native, dtype, threads, num_out, num_in):
    packed = native.pack_linear(torch.randn(num_out, num_in).bfloat16())
    x = torch.randn(130, num_in).to(dtype)
    threads(1)
    alone = torch.cat([native.linear(row[None], packed) for row in x])
    for num_threads in (1, 2, 3):
        threads(num_threads)
        for tokens in (*range(1, 26), 130):
            assert torch.equal(native.linear(x[:tokens], packed), alone[:tokens])
        assert torch.equal(native.linear(x.flip(0), packed), alone.flip(0))


def test_a_head_is_the_same_in_every_batch(native, dtype, threads):
    packed = native.pack_heads(torch.randn(6, 40, 50).bfloat16())
    x = torch.randn(30, 6, 50).to(dtype)
    threads(1)
    alone = torch.cat([native.head_linear(row[None], packed) for row in x])
    threads(2)
    for tokens in (2, 7, 13, 30):
        assert torch.equal(native.head_linear(x[:tokens], packed), alone[:tokens])
