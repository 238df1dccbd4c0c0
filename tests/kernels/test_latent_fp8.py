"""Latent KV in FP8: properties of its definition, and every implementation against it."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.gpu import attention_decode, attention_decode_hopper
from kernels.gpu.attention_decode import DecodeTiles
from kernels.gpu.latent_fp8 import quantize, widen
from kernels.reference import latent_fp8
from kernels.reference import text as reference
from tests.kernels.checks import assert_near
from tests.kernels.test_attention import filled_cache
from tests.kernels.triton_device import moved

NAN = 255  # this byte everywhere is NaN as e4m3, as float32 and as bfloat16


def fp8_cache(blocks, block_tokens, latent, rope):
    """Return a view of one of three layers, filled with NaN."""
    width = latent_fp8.token_bytes(latent, rope)
    return torch.full((blocks, 3, block_tokens, width), NAN, dtype=torch.uint8)[:, 1]


def filled(lens, block_tokens, latent, rope):
    """Return tables, a cache in FP8, and a cache with the same numbers in float32."""
    plain, tables = filled_cache(len(lens), lens, block_tokens, latent + rope, torch.float32)
    cache = fp8_cache(len(plain), block_tokens, latent, rope)
    used = (~plain.flatten(0, 1)[:, 0].isnan()).nonzero().flatten()
    rows = plain.flatten(0, 1)[used]
    reference.write_latent(cache, used, rows[:, :latent], rows[:, latent:])
    return cache, tables, plain


def round_trip(latent):
    """Quantize latents and read them again."""
    stored = latent_fp8.quantized(latent, latent.new_zeros(len(latent), 2))
    return latent_fp8.widened(torch.cat(stored, dim=-1), latent.shape[1], torch.float32)[:, : latent.shape[1]]


def test_the_bytes_of_a_token():
    assert latent_fp8.token_bytes(512, 64) == 656
    cache = fp8_cache(2, 4, 512, 64)
    latents, scales, keys = latent_fp8.parts(cache, 512)
    assert (latents.shape[-1], scales.shape[-1], keys.shape[-1]) == (512, 4, 64)
    latent, key = torch.randn(1, 512), torch.randn(1, 64)
    reference.write_latent(cache, torch.tensor([5]), latent, key)
    assert torch.equal(keys[1, 1], key[0].bfloat16())
    expected = (latent[0].view(4, 128) / scales[1, 1][:, None]).to(torch.float8_e4m3fn)
    assert torch.equal(latents[1, 1].float(), expected.float().flatten())
    with pytest.raises(ValueError, match="no FP8 form"):
        latent_fp8.token_bytes(15, 64)


@pytest.mark.parametrize(
    "peak, scale",
    [(448.0, 1.0), (448.00003, 2.0), (224.0, 0.5), (1.75, 2.0**-8), (1.7500001, 2.0**-7), (0.0, 2.0**-100)],
)
def test_a_scale_is_the_smallest_power_of_two_that_holds_its_group(peak, scale):
    latent = torch.zeros(1, 256)
    latent[0, 130] = -peak
    _, scales, _ = latent_fp8.parts(torch.cat(latent_fp8.quantized(latent, latent[:, :2]), dim=-1), 256)
    assert scales.tolist() == [[2.0**-100, scale]]


@pytest.mark.parametrize("width", [64, 128, 160, 512])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_numbers_lose_no_more_than_their_last_digits(width, size):
    latent = torch.randn(40, width) * size
    read = round_trip(latent)
    error = (read - latent).abs()
    groups = torch.nn.functional.pad(latent, (0, -width % 128)).view(40, -1, 128).abs().amax(-1)
    peak = groups.repeat_interleave(128, -1)[:, :width]
    # Half of the last of three mantissa bits; for small numbers half of their step, 2^-10 of the scale.
    assert (error <= torch.maximum(latent.abs() * 2**-4, peak * 2**-10 / 224)).all()
    assert error.norm() / latent.norm() < 0.03
    assert torch.equal(read.bfloat16().float(), read), "exact in bfloat16"
    assert torch.equal(round_trip(read), read), "and again the same"


@pytest.mark.parametrize("stray", [float("nan"), float("inf"), -float("inf"), 57345.0])
def test_what_has_no_form_spoils_its_group_alone(stray):
    latent = torch.randn(2, 256)
    latent[1, 200] = stray
    read = round_trip(latent)
    assert read[1, 128:].isnan().all() and read[1, :128].isfinite().all() and read[0].isfinite().all()


@triton.jit
def there_and_back(x, codes, scales, out):
    row = tl.arange(0, 16)[:, None]
    place = row * 256 + tl.arange(0, 256)[None, :]
    written, scale = quantize(tl.load(x + place), 128)
    tl.store(codes + place, written)
    tl.store(scales + row * 2 + tl.arange(0, 2)[None, :], scale)
    tl.store(out + place, widen(written, scale, 128))


def test_a_kernel_writes_and_reads_the_same_bytes():
    """All e4m3 numbers, the midpoints between them and their float32 neighbours; random numbers of all sizes."""
    numbers = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (numbers[1:] + numbers[:-1]) / 2
    close = [middles, torch.nextafter(middles, numbers[1:]), torch.nextafter(middles, numbers[:-1]), numbers]
    values = torch.cat(close)
    values = torch.cat((values, -values, torch.zeros(1024 - 2 * len(values)))).view(8, 128)
    values[:, 127] = 448.0  # so that the scale is 1
    sizes = 10.0 ** torch.randint(-30, 4, (24, 1))
    x = torch.cat((values, torch.randn(24, 128) * sizes)).view(16, 256)
    expected, _ = latent_fp8.quantized(x, x[:, :2])
    places = [torch.empty(16, 256, dtype=torch.uint8), torch.empty(16, 2), torch.empty(16, 256).bfloat16()]
    x_there, codes, scales, out = moved(x, *places)
    there_and_back[(1,)](x_there, codes, scales, out)
    assert torch.equal(codes.cpu(), expected[:, :256])
    assert torch.equal(scales.cpu(), expected[:, 256:].contiguous().view(torch.float32))
    assert torch.equal(out.cpu().float(), round_trip(x))


@pytest.mark.parametrize("latent", [4, 20, 128, 132, 512])
@pytest.mark.parametrize("slots", [[], [11], [11, 0, 4, 7, 3]], ids=str)
def test_norm_rope_store_is_the_norm_quantized(fast, oracle, dtype, latent, slots):
    """Equal bits to the implementation's own norm, stored by the definition; norms may differ in the last bit."""
    tokens, rope = len(slots), 6
    x, weight = torch.randn(tokens, latent + 10).to(dtype), torch.randn(latent).bfloat16()
    positions, inv_freq = torch.randint(0, 262144, (tokens,)), 50000.0 ** (-torch.arange(0, rope, 2) / rope)
    arguments = (x[:, :latent], x[:, latent : latent + rope], weight, 1e-6, positions, inv_freq)
    where = torch.tensor(slots, dtype=torch.int64)
    plain = torch.zeros(3, 4, latent + rope, dtype=dtype)
    actual, expected = fp8_cache(3, 4, latent, rope), fp8_cache(3, 4, latent, rope)
    fast.norm_rope_store(plain, where, *arguments)
    fast.norm_rope_store(actual, where, *arguments)
    rows = plain.flatten(0, 1)[where]
    oracle.write_latent(expected, where, rows[:, :latent], rows[:, latent:])
    assert torch.equal(actual, expected)
    assert (actual == NAN).all(-1).sum() == 12 - tokens


def test_write_latent(fast, oracle, dtype):
    latent, rope_key, slots = torch.randn(5, 132).to(dtype), torch.randn(5, 8).to(dtype), torch.tensor([11, 0, 4, 7, 3])
    actual, expected = fp8_cache(3, 4, 132, 8), fp8_cache(3, 4, 132, 8)
    for kernels, cache in ((fast, actual), (oracle, expected)):
        kernels.write_latent(cache, slots, latent, rope_key)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("block_tokens", [1, 16, 64])
@pytest.mark.parametrize("heads, latent, rope", [(1, 4, 2), (3, 20, 6), (18, 132, 8)])
@pytest.mark.parametrize("lens", [[], [1], [64], [130, 0, 7, 129, 2]], ids=str)
@pytest.mark.slow
def test_mla_decode(fast, oracle, dtype, block_tokens, heads, latent, rope, lens):
    cache, tables, _ = filled(lens, block_tokens, latent, rope)
    q_latent, q_rope = torch.randn(len(lens), heads, latent).to(dtype), torch.randn(len(lens), heads, rope).to(dtype)
    arguments = (q_latent, q_rope, cache, tables, torch.tensor(lens, dtype=torch.int32), 0.14)
    assert_near(fast.mla_decode(*arguments), oracle.mla_decode(*arguments))


@pytest.mark.parametrize("lens", [[33], [129, 0, 500, 1]], ids=str)
def test_mla_decode_in_splits(monkeypatch, oracle, dtype, lens):
    tiles = DecodeTiles(16, 16, 4, 1, split_tiles=2, max_splits=4)
    monkeypatch.setattr(attention_decode, "decode_tiles", lambda heads, latent, dtype: tiles)
    cache, tables, _ = filled(lens, 16, 32, 8)
    q = torch.randn(len(lens), 3, 40).to(dtype)
    arguments = (q[..., :32], q[..., 32:], cache, tables, torch.tensor(lens, dtype=torch.int32))
    actual = attention_decode.mla_decode(*moved(*arguments), 0.2)
    assert_near(actual.cpu(), oracle.mla_decode(*arguments, 0.2))


@pytest.mark.slow
def test_mla_decode_with_the_sizes_of_k26(fast, oracle, dtype):
    lens = [1, 200, 70]
    cache, tables, plain = filled(lens, 64, 512, 64)
    q, counts = torch.randn(3, 64, 576).to(dtype), torch.tensor(lens, dtype=torch.int32)
    actual = fast.mla_decode(q[..., :512], q[..., 512:], cache, tables, counts, 0.1446)
    assert_near(actual, oracle.mla_decode(q[..., :512], q[..., 512:], cache, tables, counts, 0.1446))
    exact = oracle.mla_decode(q[:1, :, :512].float(), q[:1, :, 512:].float(), plain, tables[:1], counts[:1], 0.1446)
    error = (actual[0].float() - exact[0]).norm() / exact.norm()  # a result with one token is its latent
    assert 0.005 < error < 0.03


def test_a_number_that_is_none_stays_in_its_row(fast):
    cache, tables, _ = filled([40, 40], 16, 16, 8)
    cache[tables[1, 1], 3] = NAN
    q = torch.randn(2, 2, 24)
    out = fast.mla_decode(q[..., :16], q[..., 16:], cache, tables, torch.tensor([40, 40], dtype=torch.int32), 0.2)
    assert out[0].isfinite().all() and out[1].isnan().all()


@pytest.mark.parametrize("context, tokens", [(1, 1), (64, 3), (65, 65), (300, 140)])
def test_mla_prefill(fast, oracle, dtype, context, tokens):
    heads, nope, rope, v_dim, latent = 3, 24, 8, 20, 48
    cache, tables, _ = filled([context], 16, latent, rope)
    weight = torch.randn(heads * (nope + v_dim), latent).bfloat16() * 0.2
    q = torch.randn(tokens, heads, nope + rope).to(dtype)
    arguments = (q[..., :nope], q[..., nope:], cache, tables[0], context)
    actual = fast.mla_prefill(*arguments, fast.pack_linear(weight), v_dim, 0.2)
    assert_near(actual, oracle.mla_prefill(*arguments, oracle.pack_linear(weight), v_dim, 0.2))


def test_gluon_takes_bfloat16_alone(monkeypatch):
    monkeypatch.setattr(attention_decode_hopper, "device_class", lambda tensor: "sm_90")
    q = torch.zeros(1, 64, 576).bfloat16()
    plain = torch.zeros(2, 64, 576).bfloat16()
    assert attention_decode_hopper.takes(q[..., :512].contiguous(), q[..., 512:].contiguous(), plain)
    assert not attention_decode_hopper.takes(
        q[..., :512].contiguous(), q[..., 512:].contiguous(), fp8_cache(2, 64, 512, 64)
    )
