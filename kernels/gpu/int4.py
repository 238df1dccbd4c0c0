"""INT4 weights in the order of tensor-core fragments, and the grouped product with them.

Weights are operand A of the product, W X^T, so that 16 tokens suffice for a wgmma and an unpacked weight never leaves
the registers. Each thread loads its own fragment: int32 words [N / rows, K / columns, R, 8, 4, G, 2] with
R = rows / 16, G = columns / 32. In word [r, h, l, g, s], nibble 2 j + i + 4 p is the weight of
    row 16 r + 8 i + h   column 32 g + 16 s + 8 j + 2 l + p
Scales are int32 [N / rows, K / columns, R, 8, G]: row 16 r + h in the low half, row 16 r + 8 + h in the high half.
Gate and up rows alternate in runs of 8, so i = 0 is a gate row and i = 1 the corresponding up row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference.text import GROUP


def packed_tile(num_rows: int, num_columns: int) -> tuple[int, int]:
    """Return rows and columns of one contiguous tile of packed weights: 128 x 64 if the matrix is divisible by it."""
    rows = next(rows for rows in (128, 64, 32, 16) if num_rows % rows == 0)
    return rows, 64 if num_columns % 64 == 0 else GROUP


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Join two [width, ...] to [2 * width, ...]: 8 gate rows, then the corresponding 8 up rows, and so on."""
    runs = [part.reshape(-1, 8, *part.shape[1:]) for part in (gate, up)]
    return torch.stack(runs, dim=1).flatten(0, 2)


def pack(words: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a matrix of the checkpoint in the layout of this module.

    words    [N, K / 8] i32, eight columns a word, the first in the lowest bits; value + 8
    scale    [N, K / 32] bf16
    returns  words [N * K / 8] i32, scales [N * K / 64] i32
    """
    num_rows, num_columns = scale.shape[0], scale.shape[1] * GROUP
    rows, columns = packed_tile(num_rows, num_columns)
    runs, groups = rows // 16, columns // GROUP
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    nibbles = (words[..., None] >> shifts) & 15
    split = nibbles.reshape(num_rows // rows, runs, 2, 8, num_columns // columns, groups, 2, 2, 4, 2)
    fragments = split.permute(0, 4, 1, 3, 8, 5, 6, 9, 7, 2)  # rows r i h, columns g s j l p: to r h l g s, p j i
    packed = (fragments.flatten(-3) << shifts).sum(-1, dtype=torch.int32).flatten()
    halves = scale.view(torch.int16).reshape(num_rows // rows, runs, 2, 8, num_columns // columns, groups)
    pairs = halves.permute(0, 4, 1, 3, 5, 2).contiguous().view(torch.int32)
    return packed, pairs.flatten()


@triton.jit
def _unpack_asm(word, low, high):
    # 0x4300 | u is 128 + u in bf16; adding -136 leaves u - 8 exactly, and the product with the scale rounds once.
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a<4>, b<4>, c;
        mov.b32 c, 0xC308C308;
        shr.b32 b1, $8, 4;  shr.b32 b2, $8, 8;  shr.b32 b3, $8, 12;
        lop3.b32 a0, $8, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 a1, b1, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 a2, b2, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 a3, b3, 0x000F000F, 0x43004300, 0xEA;
        add.bf16x2 a0, a0, c;  add.bf16x2 a1, a1, c;  add.bf16x2 a2, a2, c;  add.bf16x2 a3, a3, c;
        mul.bf16x2 a0, a0, $9;  mul.bf16x2 a1, a1, $10;  mul.bf16x2 a2, a2, $9;  mul.bf16x2 a3, a3, $10;
        mov.b32 {$0,$1}, a0;  mov.b32 {$2,$3}, a1;  mov.b32 {$4,$5}, a2;  mov.b32 {$6,$7}, a3;
        }""",
        constraints="=h,=h,=h,=h,=h,=h,=h,=h,r,r,r",
        args=[word, low, high],
        dtype=(tl.bfloat16,) * 8,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _twice_asm(pair):
    """Two words: the low scale of a pair in both halves, and the high scale in both halves."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $2, $2, 0x1010; prmt.b32 $1, $2, $2, 0x3232;",
        constraints="=r,=r,r",
        args=[pair],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def _weight(word, scale, NIBBLE: tl.constexpr, DTYPE: tl.constexpr):
    return ((((word >> (4 * NIBBLE)) & 15) - 8).to(tl.float32) * scale).to(DTYPE)


@triton.jit
def _unpack(word, pair, RUNS: tl.constexpr, R: tl.constexpr, G: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Unpack words and scale pairs in memory order to weights [RUNS, R, 8, 4, G, 2 (s), 2 (j), 2 (i), 2 (p)]."""
    word = tl.reshape(word, (RUNS, R, 8, 4, G, 2))
    pair = tl.reshape(pair, (RUNS, R, 8, G))
    if ASM:
        low, high = _twice_asm(pair)
        low = tl.broadcast_to(low[:, :, :, None, :, None], (RUNS, R, 8, 4, G, 2))
        high = tl.broadcast_to(high[:, :, :, None, :, None], (RUNS, R, 8, 4, G, 2))
        x0, x4, x1, x5, x2, x6, x3, x7 = _unpack_asm(word, low, high)
    else:
        low = ((pair & 0xFFFF) << 16).to(tl.float32, bitcast=True)[:, :, :, None, :, None]
        high = (pair & -65536).to(tl.float32, bitcast=True)[:, :, :, None, :, None]
        x0 = _weight(word, low, 0, DTYPE)
        x1 = _weight(word, high, 1, DTYPE)
        x2 = _weight(word, low, 2, DTYPE)
        x3 = _weight(word, high, 3, DTYPE)
        x4 = _weight(word, low, 4, DTYPE)
        x5 = _weight(word, high, 5, DTYPE)
        x6 = _weight(word, low, 6, DTYPE)
        x7 = _weight(word, high, 7, DTYPE)
    even = tl.join(tl.join(x0, x2), tl.join(x1, x3))  # [..., i, j] of p = 0
    odd = tl.join(tl.join(x4, x6), tl.join(x5, x7))
    return tl.join(even, odd)


@triton.jit(do_not_specialize=["num_slots"])
def grouped_product_kernel(
    x, words, scales, out, slots, tile_experts, num_tiles, num_slots, num_rows, num_columns, slots_per_row,
    TOKENS: tl.constexpr, TILE_N: tl.constexpr, TILE_K: tl.constexpr, PACKED_K: tl.constexpr,
    SWIGLU: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """out[slot] = act(W[expert of the tile] x[slot // slots_per_row]), weights in the layout of this module.

    Grid: (num_rows / TILE_N, at least the number of token tiles). SWIGLU: act(gate, up) = silu(gate) * up.
    A token's sums take the columns in order, TILE_K at a time, and do not depend on the other tokens of its tile.
    """
    R: tl.constexpr = TILE_N // 16
    RUNS: tl.constexpr = TILE_K // PACKED_K
    G: tl.constexpr = PACKED_K // 32
    DTYPE: tl.constexpr = x.dtype.element_ty
    tile = tl.program_id(1)
    if tile >= tl.load(num_tiles):
        return
    row_tile = tl.program_id(0)
    expert = tl.load(tile_experts + tile).to(tl.int64)
    slot = tl.load(slots + tile * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    is_token = slot < num_slots
    # One index instead of one per dimension, because only then does the compiler see 16 contiguous bytes per thread and
    # copy them through shared memory without bank conflicts.
    word_at = tl.arange(0, TILE_N * TILE_K // 8)
    pair_at = tl.arange(0, R * 8 * TILE_K // 32)
    first = (expert * (num_rows // TILE_N) + row_tile) * num_columns
    words += first * (TILE_N // 8)
    scales += first // 32 * (R * 8)
    x_at = x + (slot // slots_per_row)[None, :] * num_columns + tl.arange(0, TILE_K)[:, None]
    total = tl.zeros((TILE_N, TOKENS), tl.float32)
    for column in range(0, num_columns, TILE_K):
        word = tl.load(words + column * (TILE_N // 8) + word_at)
        pair = tl.load(scales + column // 32 * (R * 8) + pair_at)
        weights = _unpack(word, pair, RUNS, R, G, DTYPE, ASM)  # run r h l g s j i p
        weights = tl.permute(weights, (1, 7, 2, 0, 4, 5, 6, 3, 8))  # r i h, run g s j l p
        tokens = tl.load(x_at + column, mask=is_token[None, :], other=0.0)
        total = tl.dot(tl.reshape(weights, (TILE_N, TILE_K)), tokens, total, input_precision="ieee")
    if SWIGLU:
        gate, up = tl.split(tl.permute(tl.reshape(total, (R, 2, 8, TOKENS)), (0, 2, 3, 1)))
        total = tl.reshape(gate * tl.sigmoid(gate) * up, (TILE_N // 2, TOKENS))
    WIDTH: tl.constexpr = TILE_N // 2 if SWIGLU else TILE_N
    row = row_tile * WIDTH + tl.arange(0, WIDTH)
    out_at = out + slot[None, :] * (num_rows * WIDTH // TILE_N) + row[:, None]
    tl.store(out_at, total.to(DTYPE), mask=is_token[None, :])
