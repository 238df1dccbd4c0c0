"""Properties of the Triton attention beyond its values, and shapes that only it treats differently."""

import itertools

import pytest
import torch

from kernels.gpu import attention_decode, attention_prefill, vision_attention
from kernels.gpu.attention_decode import DecodeTiles, count_splits
from kernels.gpu.dense import Dense
from kernels.reference import vision as vision_reference
from tests.kernels.checks import assert_near
from tests.kernels.test_attention import filled_cache
from tests.kernels.triton_device import DEVICE, moved


@pytest.fixture
def small_splits(monkeypatch):
    """At most four splits of two tiles of 16 tokens, so that short contexts cover the cases of long ones."""
    tiles = DecodeTiles(16, 16, 4, 1, split_tiles=2, max_splits=4)
    monkeypatch.setattr(attention_decode, "decode_tiles", lambda heads, latent, dtype: tiles)


@pytest.mark.parametrize("lens", [[31], [32], [33], [128], [129, 0, 500, 1]], ids=str)
def test_contexts_around_the_ends_of_splits(small_splits, oracle, dtype, lens):
    cache, tables = filled_cache(len(lens), lens, 16, 40, dtype)
    q = torch.randn(len(lens), 3, 40).to(dtype)
    arguments = (q[..., :32], q[..., 32:], cache, tables, torch.tensor(lens, dtype=torch.int32))
    actual = attention_decode.mla_decode(*moved(*arguments), 0.2)
    assert_near(actual.cpu(), oracle.mla_decode(*arguments, 0.2))


def test_a_row_attends_alike_in_every_batch_and_in_any_blocks(small_splits, dtype):
    lens = [300, 1, 64, 0, 129]
    cache, tables = filled_cache(5, lens, 32, 40, dtype)
    q = torch.randn(5, 4, 40).to(dtype)
    counts = torch.tensor(lens, dtype=torch.int32)
    together = attention_decode.mla_decode(*moved(q[..., :32], q[..., 32:], cache, tables, counts), 0.2)
    for i in range(5):
        one = slice(i, i + 1)
        used = -(-lens[i] // 32)
        # In other blocks of the cache, with a table that is only as wide as necessary.
        blocks = torch.randperm(len(cache))
        elsewhere = torch.full_like(cache, float("nan"))
        elsewhere[blocks[:used]] = cache[tables[i, :used].long()]
        arguments = (q[one, :, :32], q[one, :, 32:], elsewhere, blocks[None, : max(1, used)].int(), counts[one])
        assert torch.equal(attention_decode.mla_decode(*moved(*arguments), 0.2)[0], together[i])


def test_the_number_of_splits_is_bounded():
    tiles = DecodeTiles(64, 64, 8, 2, split_tiles=16, max_splits=64)
    assert [count_splits(tokens, tiles) for tokens in (0, 1, 1024, 1025, 65_536, 262_144)] == [1, 1, 1, 2, 64, 64]


def test_a_number_that_is_none_stays_in_its_row():
    cache, tables = filled_cache(2, [40, 40], 16, 24, torch.float32)
    cache[tables[1, 1], 3] = float("nan")
    q = torch.randn(2, 2, 24)
    arguments = moved(q[..., :16], q[..., 16:], cache, tables, torch.tensor([40, 40], dtype=torch.int32))
    out = attention_decode.mla_decode(*arguments, 0.2)
    assert out[0].isfinite().all() and out[1].isnan().all()


@pytest.mark.parametrize("context, tokens", [(64, 64), (65, 1), (200, 131)])
def test_prefill_in_pieces_is_prefill_at_once(oracle, context, tokens):
    heads, nope, rope, v_dim, latent = 2, 24, 8, 20, 48
    cache, tables = filled_cache(1, [context], 16, latent + rope, torch.bfloat16)
    dense = Dense()
    weight = torch.randn(heads * (nope + v_dim), latent).bfloat16() * 0.2
    q = torch.randn(tokens, heads, nope + rope).bfloat16()
    arguments = (q[..., :nope], q[..., nope:], cache, tables[0])

    def attend(first, end, piece_tokens):
        q_nope, q_rope, *kept = arguments
        parts = moved(q_nope[first:end], q_rope[first:end], *kept)
        packed = dense.pack_linear(*moved(weight))
        context_len = context - tokens + end
        options = {"linear": dense.linear, "piece_tokens": piece_tokens}
        return attention_prefill.mla_prefill(*parts, context_len, packed, v_dim, 0.2, **options).cpu()

    whole = attend(0, tokens, 16_384)
    assert_near(whole, oracle.mla_prefill(*arguments, context, oracle.pack_linear(weight), v_dim, 0.2))
    assert_near(attend(0, tokens, 64), whole)
    cuts = sorted({0, tokens // 3, tokens})
    parts = [attend(first, end, 64) for first, end in itertools.pairwise(cuts)]
    assert_near(torch.cat(parts), whole)


@pytest.mark.parametrize("width", [8, 16, 72])
@pytest.mark.parametrize("lengths", [[], [1], [64, 1], [127, 0, 129]], ids=str)
def test_vision_attention(dtype, width, lengths):
    q, k, v = torch.randn(sum(lengths), 3, 2, width).to(dtype).unbind(1)
    actual = vision_attention.vit_attention(*moved(q, k, v), lengths)
    if lengths:
        assert_near(actual.cpu(), vision_reference.vit_attention(q.float(), k.float(), v.float(), lengths).to(dtype))
    assert actual.shape == q.shape


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU: the sizes of K2.6 with long contexts")
@pytest.mark.parametrize("lens", [[131_072], [32_768, 1, 4_096, 70_001]], ids=str)
def test_long_contexts_with_the_sizes_of_k26(oracle, lens):
    cache, tables = filled_cache(len(lens), lens, 64, 576, torch.bfloat16)
    q = torch.randn(len(lens), 64, 576).bfloat16()
    arguments = moved(q[..., :512], q[..., 512:], cache, tables, torch.tensor(lens, dtype=torch.int32))
    together = attention_decode.mla_decode(*arguments, 0.1446)
    assert_near(together, oracle.mla_decode(*arguments, 0.1446))
    for i in range(
        len(lens)
    ):  # with copies of itself: bits are equal in batches of the same class, here of the same size
        of_row = [i] * len(lens)
        q_latent, q_rope, kept, *rest = arguments
        again = attention_decode.mla_decode(
            q_latent[of_row], q_rope[of_row], kept, *(part[of_row] for part in rest), 0.1446
        )
        assert torch.equal(again[0], together[i])
