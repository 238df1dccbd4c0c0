"""The Triton kernels alone: the corrected interpreter, sorting by expert, the packed layout, the order of sums."""

import pytest
import torch
import triton
import triton.language as tl

from kernels.gpu import experts
from kernels.gpu.align import align_tokens, combine
from kernels.gpu.experts import TILES, num_sizes, product_tiles
from kernels.gpu.int4 import interleave, pack, packed_tile
from kernels.gpu.kernels import TritonKernels
from kernels.reference import text as reference
from tests.kernels.checks import expert, int4

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def arithmetic(a, b, out, TILE: tl.constexpr):  # noqa: N803
    at = tl.arange(0, TILE)
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(out + at, x + y)
    tl.store(out + TILE + at, x * y)
    tl.store(out + 2 * TILE + at, tl.where(x < y, x, y))
    tl.store(out + 3 * TILE + at, tl.load(a + at).to(tl.float32) * 1.00390625)  # rounded, often a tie
    tl.store(out + 4 * TILE + at, at.to(tl.bfloat16))


@triton.jit
def product(a, b, out, TILE: tl.constexpr):  # noqa: N803
    at = tl.arange(0, TILE)[:, None] * TILE + tl.arange(0, TILE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def test_bf16_is_that_of_pytorch():
    a, b = torch.randn(2, 256, device=DEVICE).bfloat16()
    out = torch.empty(5, 256, dtype=torch.bfloat16, device=DEVICE)
    arithmetic[(1,)](a, b, out, TILE=256)
    wide = (a.float() * 1.00390625).bfloat16()
    expected = torch.stack([a + b, a * b, torch.minimum(a, b), wide, torch.arange(256, device=DEVICE).bfloat16()])
    assert torch.equal(out, expected)


def test_dot_of_bf16_is_that_of_float32():
    a, b = torch.randn(2, 32, 32, device=DEVICE).bfloat16()
    out = torch.empty(32, 32, device=DEVICE)
    product[(1,)](a, b, out, TILE=32)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_sizes", [1, 2, 4])
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([], id="nothing"),
        pytest.param([1], id="one"),
        pytest.param([0, 15, 16, 17, 0, 1, 31, 32, 33], id="around-a-tile"),
        pytest.param([0, 0, 0], id="none-is-local"),
        pytest.param([1100, 3, 64, 65, 128, 129], id="more-than-a-pass"),
    ],
)
def test_every_assignment_is_in_a_tile_of_its_expert(counts, num_sizes):
    ids = torch.cat([torch.full((count,), expert) for expert, count in enumerate(counts)] + [torch.full((5,), -1)])
    ids = ids[torch.randperm(len(ids))].int().to(DEVICE)
    by_expert: dict[int, list[int]] = {}
    for plan in align_tokens(ids[:, None], max(1, len(counts)), num_sizes):
        num_tiles = int(plan.num_tiles)
        assert num_tiles <= plan.max_tiles
        listed = plan.slots[: num_tiles * plan.tokens].view(num_tiles, plan.tokens).tolist()
        for expert_id, slots in zip(plan.experts[:num_tiles].tolist(), listed, strict=True):
            is_largest = plan.tokens == 16 << (num_sizes - 1)
            assert plan.tokens >= counts[expert_id] or is_largest
            assert plan.tokens == 16 or plan.tokens < 2 * counts[expert_id]
            by_expert.setdefault(expert_id, []).extend(slot for slot in slots if slot < len(ids))
    assert by_expert == {e: (ids == e).nonzero().flatten().tolist() for e, count in enumerate(counts) if count}


def test_combine_leaves_out_what_is_not_here():
    parts = torch.randn(6, 40, device=DEVICE)
    parts[1] = parts[4] = float("nan")  # no product writes it
    ids = torch.tensor([[0, -1], [2, 1], [7, -1]], device=DEVICE).int()  # expert 7 does not exist
    parts[4] = float("inf")
    weights = torch.rand(3, 2, device=DEVICE)
    out = combine(parts, ids, weights, 3, torch.float32)
    expected = [weights[0, 0] * parts[0], weights[1, 0] * parts[2] + weights[1, 1] * parts[3], torch.zeros(40)]
    torch.testing.assert_close(out.cpu(), torch.stack([row.cpu() for row in expected]))


@pytest.mark.parametrize("rows, columns", [(16, 32), (96, 96), (256, 192)])
def test_packed_weights_are_the_checkpoint_in_another_order(rows, columns):
    words, scale = int4(rows, columns)
    packed, pairs = pack(words, scale)
    assert packed.nbytes == words.nbytes and pairs.nbytes == scale.nbytes
    tile_rows, tile_columns = packed_tile(rows, columns)
    runs, groups = tile_rows // 16, tile_columns // 32
    numbers = reference.dequantize(words, torch.ones_like(scale))
    read = packed.view(rows // tile_rows, columns // tile_columns, runs, 8, 4, groups, 2)
    for row, column in ((0, 0), (rows - 1, columns - 1), (9, 17), (rows // 2 + 3, columns // 2 + 5)):
        in_row, in_column = row % tile_rows, column % tile_columns
        word = read[
            row // tile_rows, column // tile_columns, in_row // 16, in_row % 8,
            in_column % 8 // 2, in_column // 32, in_column % 32 // 16,
        ]  # fmt: skip
        nibble = 4 * (column % 2) + 2 * (column % 16 // 8) + in_row % 16 // 8
        assert (int(word) >> (4 * nibble) & 15) - 8 == numbers[row, column]
        pair = pairs.view(torch.bfloat16).view(rows // tile_rows, columns // tile_columns, runs, 8, groups, 2)
        place = (row // tile_rows, column // tile_columns, in_row // 16, in_row % 8, in_column // 32, in_row % 16 // 8)
        assert pair[place] == scale[row, column // 32]


def test_gate_and_up_alternate_in_runs_of_8():
    gate, up = torch.arange(16)[:, None], torch.arange(100, 116)[:, None]
    assert interleave(gate, up).flatten().tolist() == [*range(8), *range(100, 108), *range(8, 16), *range(108, 116)]


@pytest.mark.parametrize("tokens, sizes", [(1, 1), (16, 1), (17, 2), (33, 3), (65, 4), (4096, 4)])
def test_no_more_sizes_than_an_expert_may_need(tokens, sizes):
    assert num_sizes(tokens, torch.bfloat16) == sizes
    assert num_sizes(tokens, torch.float32) == 1
    assert all(product_tiles(16 << size, torch.bfloat16, "other") in TILES.values() for size in range(sizes))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter runs no assembly")
@pytest.mark.parametrize("tokens", [1, 40, 200, 1000])
def test_unpacking_in_assembly_is_the_arithmetic_to_the_bit(monkeypatch, tokens):
    kernels = TritonKernels()
    packed = kernels.pack_experts([tuple(part.to(DEVICE) for part in expert(512, 256)) for _ in range(4)])
    x, weights = torch.randn(tokens, 512, device=DEVICE).bfloat16(), torch.rand(tokens, 2, device=DEVICE)
    ids = torch.stack([torch.randperm(4)[:2] for _ in range(tokens)]).int().to(DEVICE)
    assembly = kernels.expert_mlp(x, ids, weights, packed)
    monkeypatch.setattr(experts, "device_class", lambda tensor: "other")
    assert torch.equal(kernels.expert_mlp(x, ids, weights, packed), assembly)


def test_a_token_is_the_same_whatever_shares_its_tile(dtype):
    """Equal bits hold within one size of tile. Between sizes the order is the same, but hardware guarantees nothing."""
    kernels = TritonKernels()
    packed = kernels.pack_experts([tuple(part.to(DEVICE) for part in expert(64, 64)) for _ in range(3)])
    x = torch.randn(20, 64, device=DEVICE).to(dtype)
    ids = torch.stack([torch.randperm(3)[:2] for _ in range(20)]).int().to(DEVICE)
    weights = torch.rand(20, 2, device=DEVICE)
    together = kernels.expert_mlp(x, ids, weights, packed)
    for row in (0, 7, 19):
        one = slice(row, row + 1)
        assert torch.equal(kernels.expert_mlp(x[one], ids[one], weights[one], packed)[0], together[row])
    shuffled = torch.randperm(20)
    assert torch.equal(kernels.expert_mlp(x[shuffled], ids[shuffled], weights[shuffled], packed), together[shuffled])
