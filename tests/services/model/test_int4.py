import pytest
import torch

from services.model.int4 import dequantize, pack_int4, quantize, unpack_int4
from tests.reference.model import unpack


@pytest.mark.parametrize(
    "values, word",
    [
        pytest.param(range(-8, 0), 1985229328, id="negative"),
        pytest.param(range(8), -19088744, id="positive"),
        pytest.param([-8] * 8, 0, id="all-least"),
        pytest.param([7] * 8, -1, id="all-most"),
    ],
)
def test_words_of_the_format(values, word):
    assert pack_int4(torch.tensor([list(values)], dtype=torch.int8)).tolist() == [[word]]
    assert unpack_int4(torch.tensor([[word]], dtype=torch.int32)).tolist() == [list(values)]


@pytest.mark.parametrize("rows, columns", [(0, 32), (1, 32), (3, 96), (64, 160)])
def test_packing_is_lossless(rows, columns):
    values = torch.randint(-8, 8, (rows, columns), dtype=torch.int8)
    packed = pack_int4(values)
    assert packed.shape == (rows, columns // 8)
    assert packed.dtype == torch.int32
    assert torch.equal(unpack_int4(packed), values)


def test_dequantized_as_the_reference_does():
    packed = torch.randint(-(1 << 31), 1 << 31, (5, 12)).to(torch.int32)
    scale = torch.rand(5, 3).to(torch.bfloat16)
    assert torch.equal(dequantize(packed, scale), unpack(packed, scale).to(torch.bfloat16))


def test_quantization_is_within_half_a_scale():
    weight = torch.randn(7, 64) * torch.logspace(-3, 2, 7)[:, None]
    packed, scale = quantize(weight)
    assert (packed.dtype, packed.shape, scale.dtype, scale.shape) == (torch.int32, (7, 8), torch.bfloat16, (7, 2))
    assert unpack_int4(packed).abs().max() == 7
    error = (unpack(packed, scale) - weight).abs().view(7, 2, 32)
    # A scale rounded to bf16 may be 0.4 % too small for the largest weight, which is then clipped to 7 scales.
    assert (error <= 0.53 * scale.float().unsqueeze(-1)).all()


def test_quantization_of_zeros():
    packed, scale = quantize(torch.zeros(1, 32))
    assert unpack_int4(packed).abs().max() == 0
    assert scale.item() > 0


def test_what_int4_holds_exactly_comes_back():
    values = torch.randint(-7, 8, (4, 64), dtype=torch.int8)
    values[:, ::32] = 7
    scale = torch.tensor([0.5, 0.0625]).to(torch.bfloat16).repeat(4, 1)
    packed, found = quantize(unpack(pack_int4(values), scale))
    assert torch.equal(unpack_int4(packed), values)
    assert torch.equal(found, scale)
