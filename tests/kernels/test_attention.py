"""MLA of every implementation against the reference: paged, any block order, unused slots full of NaN."""

import itertools

import pytest
import torch

from kernels import ExpandedContext
from tests.kernels.checks import assert_near, paged_cache
from tests.kernels.pairwise import pairwise


def filled_cache(num_rows, lens, block_tokens, width, dtype):
    """Return a cache with NaN in unused slots, and tables with blocks in random order and -1 past the end."""
    counts = [-(-length // block_tokens) for length in lens]
    cache = paged_cache(sum(counts) + 3, block_tokens, width, dtype)
    order = torch.randperm(sum(counts) + 3).tolist()
    tables = torch.full((num_rows, max([1, *counts]) + 2), -1, dtype=torch.int32)
    for row, length in enumerate(lens):
        for i in range(counts[row]):
            tables[row, i] = block = order.pop()
            used = min(block_tokens, length - i * block_tokens)
            cache[block, :used] = torch.randn(used, width).to(dtype)
    return cache, tables


@pytest.mark.parametrize(
    "block_tokens, heads, latent, rope, lens",
    pairwise(
        [1, 16, 64],
        [(1, 15, 2), (3, 20, 6), (16, 64, 16), (18, 32, 8)],
        [[], [1], [64], [65, 1, 63], [130, 0, 7, 129, 2]],
    ),
)
def test_mla_decode(fast, oracle, dtype, block_tokens, heads, latent, rope, lens):
    cache, tables = filled_cache(len(lens), lens, block_tokens, latent + rope, dtype)
    q_latent, q_rope = torch.randn(len(lens), heads, latent).to(dtype), torch.randn(len(lens), heads, rope).to(dtype)
    arguments = (q_latent, q_rope, cache, tables, torch.tensor(lens, dtype=torch.int32), 0.14)
    assert_near(fast.mla_decode(*arguments), oracle.mla_decode(*arguments))


@pytest.mark.slow
def test_mla_decode_with_the_sizes_of_k26(fast, oracle, dtype):
    lens = [1, 200, 70]
    cache, tables = filled_cache(3, lens, 64, 576, dtype)
    q = torch.randn(3, 64, 576).to(dtype)
    arguments = (q[..., :512], q[..., 512:], cache, tables, torch.tensor(lens, dtype=torch.int32), 0.14467962580268923)
    assert_near(fast.mla_decode(*arguments), oracle.mla_decode(*arguments))


def test_mla_decode_of_very_different_scores(fast, oracle):
    cache, tables = filled_cache(1, [150], 16, 24, torch.float32)
    arguments = (torch.randn(1, 2, 16) * 100, torch.randn(1, 2, 8) * 100, cache, tables, torch.tensor([150]).int(), 0.5)
    assert_near(fast.mla_decode(*arguments), oracle.mla_decode(*arguments))


def test_a_row_attends_alike_in_every_batch(native, dtype, threads):
    lens = [300, 1, 64, 129, 65, 40]
    cache, tables = filled_cache(6, lens, 32, 80, dtype)
    q_latent, q_rope = torch.randn(6, 20, 64).to(dtype), torch.randn(6, 20, 16).to(dtype)
    counts = torch.tensor(lens, dtype=torch.int32)
    threads(1)
    together = native.mla_decode(q_latent, q_rope, cache, tables, counts, 0.2)
    for num_threads in (1, 2, 3):
        threads(num_threads)
        assert torch.equal(native.mla_decode(q_latent, q_rope, cache, tables, counts, 0.2), together)
        for i in range(6):
            one = slice(i, i + 1)
            alone = native.mla_decode(q_latent[one], q_rope[one], cache, tables[one], counts[one], 0.2)
            assert torch.equal(alone[0], together[i])


def test_attention_does_not_depend_on_which_blocks_are_used(native, dtype):
    cache, tables = filled_cache(1, [100], 16, 40, dtype)
    q_latent, q_rope = torch.randn(1, 4, 32).to(dtype), torch.randn(1, 4, 8).to(dtype)
    before = native.mla_decode(q_latent, q_rope, cache, tables, torch.tensor([100]).int(), 0.2)
    moved = paged_cache(20, 16, 40, dtype)
    new_tables = tables.clone()
    for i in range(7):
        new_tables[0, i] = 19 - i
        moved[19 - i] = cache[tables[0, i]]
    after = native.mla_decode(q_latent, q_rope, moved, new_tables, torch.tensor([100]).int(), 0.2)
    assert torch.equal(before, after)


@pytest.mark.parametrize("context, tokens", [(1, 1), (5, 5), (64, 3), (65, 65), (300, 1), (300, 140)])
@pytest.mark.parametrize("nope, v_dim", [(24, 20), (7, 32)])
def test_mla_prefill(fast, oracle, dtype, context, tokens, nope, v_dim):
    heads, rope, latent = 3, 8, 48
    cache, tables = filled_cache(1, [context], 16, latent + rope, dtype)
    weight = torch.randn(heads * (nope + v_dim), latent).bfloat16() * 0.2
    q = torch.randn(tokens, heads, nope + rope).to(dtype)
    arguments = (q[..., :nope], q[..., nope:], cache, tables[0], context)
    actual = fast.mla_prefill(*arguments, fast.pack_linear(weight), v_dim, 0.2)
    assert_near(actual, oracle.mla_prefill(*arguments, oracle.pack_linear(weight), v_dim, 0.2))


def test_a_prompt_is_the_same_however_it_is_cut(native, dtype, threads):
    heads, nope, rope, v_dim, latent, context = 3, 24, 8, 20, 48, 200
    cache, tables = filled_cache(1, [context], 16, latent + rope, dtype)
    weight = native.pack_linear(torch.randn(heads * (nope + v_dim), latent).bfloat16() * 0.2)
    q = torch.randn(context, heads, nope + rope).to(dtype)

    def attend(begin, end):
        part = q[begin:end]
        return native.mla_prefill(part[..., :nope], part[..., nope:], cache, tables[0], end, weight, v_dim, 0.2)

    whole = attend(0, context)
    threads(2)
    assert torch.equal(attend(0, context), whole)
    for cuts in ([0, 64, 128, 200], [0, 1, 2, 199, 200], [0, 33, 150, 200]):
        parts = [attend(begin, end) for begin, end in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("capacity", [0, 70, 200])
def test_a_prompt_whose_keys_and_values_are_kept(kernels, oracle, dtype, capacity):
    if type(kernels).__module__.startswith("kernels.gpu"):
        pytest.skip("a GPU projects the context of every chunk")
    length, heads, nope, rope, latent, v_dim = 150, 2, 16, 8, 32, 12
    cache, tables = filled_cache(1, [length], 16, latent + rope, dtype)
    weight, q = (torch.randn(heads * (nope + v_dim), latent) * 0.2).bfloat16(), torch.randn(length, heads, nope + rope)
    packed, plain, q = kernels.pack_linear(weight), oracle.pack_linear(weight), q.to(dtype)
    kept = ExpandedContext(capacity, heads * (nope + v_dim), dtype)
    for begin, end in itertools.pairwise([0, 64, 65, 100, length]):
        part = q[begin:end]
        arguments = part[..., :nope], part[..., nope:], cache, tables[0], end
        actual = kernels.mla_prefill(*arguments, packed, v_dim, 0.2, kept)
        assert_near(actual, oracle.mla_prefill(*arguments, plain, v_dim, 0.2))
