"""The splits of absorbed attention on Hopper at the sizes of K2.6, in Gluon, which assigns work to warpgroups.

In plain Triton each of the two warpgroups computes all scores of a tile. Here each computes the scores of half the
tokens, both exchange probabilities through shared memory, and each sums half of the latent's columns. TMA loads the
tiles, two in flight. Triton cannot interpret Gluon: without a GPU, tests run these functions with
`tests/kernels/gluon.py` and compile them.
"""

from typing import Final

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels.gpu.device import device_class

HEADS: Final = 64
LATENT: Final = 512
ROPE: Final = 64
TILE_T: Final = 64
STAGES: Final = 2
NUM_WARPS: Final = 8

barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # in Triton 3.6 it is called barrier


def takes(q_latent: Tensor, q_rope: Tensor, cache: Tensor) -> bool:
    """Whether the kernel can take these tensors: the sizes of K2.6 in bf16 on Hopper, aligned for TMA."""
    sizes = (*q_latent.shape[1:], q_rope.shape[2])
    strides = (*q_latent.stride()[:2], *q_rope.stride()[:2])
    return (
        device_class(cache) == "sm_90"
        and q_latent.dtype == q_rope.dtype == cache.dtype == torch.bfloat16
        and sizes == (HEADS, LATENT, ROPE)
        and cache.shape[1] % TILE_T == 0
        and cache.stride(0) % (LATENT + ROPE) == 0
        and all(stride % 8 == 0 for stride in strides)
        and all(tensor.data_ptr() % 16 == 0 for tensor in (q_latent, q_rope, cache))
    )


@gluon.jit
def _request(latents, tail, ropes, block, tile, last_tile, i, latent_tiles, rope_tiles, arrived,
             block_rows, BLOCK_TOKENS: gl.constexpr, TILE_T: gl.constexpr, STAGES: gl.constexpr):  # fmt: skip
    """Requests a tile of the context, the i-th of this program."""
    stage = i % STAGES
    row = block * block_rows + tile * TILE_T % BLOCK_TOKENS
    mbarrier.expect(arrived.index(stage), latents.block_type.nbytes + ropes.block_type.nbytes)
    if tile == last_tile:  # reads zeros past the context: memory there may hold NaN, and 0 * NaN is NaN
        tma.async_copy_global_to_shared(tail, [row, 0], arrived.index(stage), latent_tiles.index(stage))
    else:
        tma.async_copy_global_to_shared(latents, [row, 0], arrived.index(stage), latent_tiles.index(stage))
    tma.async_copy_global_to_shared(ropes, [row, latents.block_shape[1]], arrived.index(stage), rope_tiles.index(stage))


@gluon.jit(do_not_specialize=["num_splits"])
def mla_decode_hopper_kernel(  # noqa: PLR0915
    q_latent, q_rope, cache, block_tables, context_lens, partial, log_sums, scale, num_splits,
    q_latent_row, q_latent_head, q_rope_row, q_rope_head, cache_rows, block_rows, table_row,
    HEADS: gl.constexpr, LATENT: gl.constexpr, ROPE: gl.constexpr, BLOCK_TOKENS: gl.constexpr, TILE_T: gl.constexpr,
    STAGES: gl.constexpr, SPLIT_TILES: gl.constexpr, MAX_SPLITS: gl.constexpr,
):  # fmt: skip
    """One split of one row, all heads; grid (rows, splits). As `mla_decode_split_kernel`, with two warpgroups.

    The cache is addressed as rows of LATENT + ROPE numbers; its blocks are block_rows rows apart.
    """
    row = gl.program_id(0).to(gl.int64)
    split = gl.program_id(1)
    context_len = gl.load(context_lens + row)
    tiles = gl.cdiv(context_len, TILE_T)
    per_split = gl.maximum(SPLIT_TILES, gl.cdiv(tiles, MAX_SPLITS))
    first = split * per_split
    count = gl.minimum(first + per_split, tiles) - first
    if count <= 0:
        return
    table = block_tables + row * table_row

    WIDTH: gl.constexpr = LATENT + ROPE
    latent_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_T, LATENT], gl.bfloat16)
    rope_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([TILE_T, ROPE], gl.bfloat16)
    weight_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([HEADS, TILE_T], gl.bfloat16)
    last_row = gl.load(table + (tiles - 1) * TILE_T // BLOCK_TOKENS) * block_rows + (context_len - 1) % BLOCK_TOKENS
    latents = tma.make_tensor_descriptor(cache, [cache_rows, WIDTH], [WIDTH, 1], [TILE_T, LATENT], latent_layout)
    tail = tma.make_tensor_descriptor(cache, [last_row + 1, WIDTH], [WIDTH, 1], [TILE_T, LATENT], latent_layout)
    ropes = tma.make_tensor_descriptor(cache, [cache_rows, WIDTH], [WIDTH, 1], [TILE_T, ROPE], rope_layout)
    q_l = tma.make_tensor_descriptor(
        q_latent + row * q_latent_row, [HEADS, LATENT], [q_latent_head, 1], [HEADS, LATENT], latent_layout
    )
    q_r = tma.make_tensor_descriptor(
        q_rope + row * q_rope_row, [HEADS, ROPE], [q_rope_head, 1], [HEADS, ROPE], rope_layout
    )
    latent_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TILE_T, LATENT], latent_layout)
    rope_tiles = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TILE_T, ROPE], rope_layout)
    q_latent_tile = gl.allocate_shared_memory(gl.bfloat16, [HEADS, LATENT], latent_layout)
    q_rope_tile = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], rope_layout)
    weights = gl.allocate_shared_memory(gl.bfloat16, [HEADS, TILE_T], weight_layout)
    arrived = gl.allocate_shared_memory(gl.int64, [STAGES + 1, 1], mbarrier.MBarrierLayout())  # the last: the query
    for i in gl.static_range(STAGES + 1):
        mbarrier.init(arrived.index(i), count=1)
    mbarrier.expect(arrived.index(STAGES), q_l.block_type.nbytes + q_r.block_type.nbytes)
    tma.async_copy_global_to_shared(q_l, [0, 0], arrived.index(STAGES), q_latent_tile)
    tma.async_copy_global_to_shared(q_r, [0, 0], arrived.index(STAGES), q_rope_tile)
    for i in gl.static_range(STAGES):
        if i < count:
            block = gl.load(table + (first + i) * TILE_T // BLOCK_TOKENS)
            _request(latents, tail, ropes, block, first + i, tiles - 1, i, latent_tiles, rope_tiles, arrived,
                     block_rows, BLOCK_TOKENS, TILE_T, STAGES)  # fmt: skip
    block = gl.load(table + gl.minimum(first + STAGES, tiles - 1) * TILE_T // BLOCK_TOKENS)

    # Four warps for the heads, two groups of them for the tokens of the scores and for the columns of the mean.
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], instr_shape=[16, TILE_T // 2, 16])
    mean_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], instr_shape=[16, 256, 16])
    peak = gl.full([HEADS], -float("inf"), gl.float32, gl.SliceLayout(1, score_layout))
    total = gl.full([HEADS], 0.0, gl.float32, gl.SliceLayout(1, score_layout))
    mean = gl.zeros([HEADS, LATENT], gl.float32, mean_layout)
    token = gl.arange(0, TILE_T, gl.SliceLayout(0, score_layout))
    zeros = gl.zeros([HEADS, TILE_T], gl.float32, score_layout)
    mbarrier.wait(arrived.index(STAGES), 0)
    for i in range(count):
        stage = i % STAGES
        mbarrier.wait(arrived.index(stage), (i // STAGES) & 1)
        scores = warpgroup_mma(q_latent_tile, latent_tiles.index(stage).permute((1, 0)), zeros, is_async=True)
        scores = warpgroup_mma(q_rope_tile, rope_tiles.index(stage).permute((1, 0)), scores, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[scores])
        inside = (first + i) * TILE_T + token < context_len
        scores = gl.where(inside[None, :], scores * scale, -float("inf"))
        new_peak = gl.maximum(peak, gl.max(scores, 1))
        p = gl.exp2(scores - new_peak[:, None])
        shrink = gl.exp2(peak - new_peak)
        total = total * shrink + gl.sum(p, 1)
        peak = new_peak
        weights.store(p.to(gl.bfloat16))
        mean = mean * gl.convert_layout(shrink, gl.SliceLayout(1, mean_layout))[:, None]
        fence_async_shared()
        barrier()
        mean = warpgroup_mma(weights, latent_tiles.index(stage), mean, is_async=True)
        mean = warpgroup_mma_wait(0, deps=[mean])
        barrier()
        if i + STAGES < count:
            _request(latents, tail, ropes, block, first + i + STAGES, tiles - 1, i + STAGES, latent_tiles, rope_tiles,
                     arrived, block_rows, BLOCK_TOKENS, TILE_T, STAGES)  # fmt: skip
            block = gl.load(table + gl.minimum(first + i + STAGES + 1, tiles - 1) * TILE_T // BLOCK_TOKENS)
    for i in gl.static_range(STAGES + 1):
        mbarrier.invalidate(arrived.index(i))
    place = (row * num_splits + split) * HEADS
    head = gl.arange(0, HEADS, gl.SliceLayout(1, mean_layout))
    column = gl.arange(0, LATENT, gl.SliceLayout(0, mean_layout))
    mean = mean / gl.convert_layout(total, gl.SliceLayout(1, mean_layout))[:, None]
    gl.store(partial + (place + head)[:, None] * LATENT + column[None, :], mean)
    head = gl.arange(0, HEADS, gl.SliceLayout(1, score_layout))
    gl.store(log_sums + place + head, peak + gl.log2(total))


def launch(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    partial: Tensor,
    log_sums: Tensor,
    scale: float,
    split_tiles: int,
    max_splits: int,
) -> None:
    """Fill partial and log_sums, [rows, splits, heads, ...]."""
    rows, num_splits = log_sums.shape[:2]
    block_rows = cache.stride(0) // (LATENT + ROPE)
    # The GPU builds the descriptors in memory that Triton gets from an allocator function, which is set per thread.
    triton.set_allocator(_scratch)
    mla_decode_hopper_kernel[(rows, num_splits)](
        q_latent, q_rope, cache, block_tables, context_lens, partial, log_sums, scale, num_splits,
        q_latent.stride(0), q_latent.stride(1), q_rope.stride(0), q_rope.stride(1),
        (cache.shape[0] - 1) * block_rows + cache.shape[1], block_rows, block_tables.stride(0),
        HEADS=HEADS, LATENT=LATENT, ROPE=ROPE, BLOCK_TOKENS=cache.shape[1], TILE_T=TILE_T, STAGES=STAGES,
        SPLIT_TILES=split_tiles, MAX_SPLITS=max_splits, num_warps=NUM_WARPS,
    )  # fmt: skip


def _scratch(size: int, _align: int, _stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")
