"""Every tensor operation of the model, one function each; the device of the tensors chooses the implementation.

Dtypes: activations are float32 or bfloat16, the dtype of the run; dense weights come as bfloat16, which both represent
exactly. Sums are taken in float32 and rounded once to the dtype of the run; a float32 run never rounds to bfloat16.
`kernels/reference/text.py` defines each result; `describe()` names the implementations in use.

A latent KV cache has the dtype of the run, or FP8 stored as uint8: its last dimension is then the bytes of a token
(`kernels/reference/latent_fp8.py`) instead of kv_lora + rope.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from kernels.choice import CPU, implementations, kernels_for, kernels_on, sampling_for, vision_for
from kernels.expanded import ExpandedContext
from kernels.fused import absorbed_attention, decode_step, mlp
from kernels.interface import ExpertTensors, ExpertWeights, HeadWeight, LinearWeight, MlaWeights
from kernels.reference.sampling import Edits, Shapes, adjust, top_tokens

__all__ = [
    "Edits",
    "ExpandedContext",
    "ExpertTensors",
    "ExpertWeights",
    "HeadWeight",
    "LinearWeight",
    "MlaWeights",
    "Shapes",
    "absorbed_attention",
    "add_rms_norm",
    "adjust",
    "decode_step",
    "describe",
    "draw",
    "expert_mlp",
    "head_linear",
    "implementations",
    "linear",
    "log_totals",
    "mla_decode",
    "mla_prefill",
    "mlp",
    "norm_rope_store",
    "pack_experts",
    "pack_heads",
    "pack_linear",
    "rms_norm",
    "rope",
    "route",
    "silu_mul",
    "top_tokens",
    "vit_attention",
    "write_latent",
]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps), rounded to the dtype of the run, times the weight.

    x        [..., width]
    weight   [width] bf16
    returns  like x
    """
    return kernels_for(x).rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + residual, rounded to the dtype of the run, and its `rms_norm`.

    x, residual  [tokens, width]
    returns      the sum and the norm, each like x
    """
    return kernels_for(x).add_rms_norm(x, residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU: silu of the gate half times the up half.

    gate_up  [tokens, 2 * width]; columns [0, width) are the gate
    returns  [tokens, width]
    """
    return kernels_for(gate_up).silu_mul(gate_up)


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotary embedding of interleaved pairs (0, 1), (2, 3), ...

    x          [tokens, heads, width], the last dimension contiguous
    positions  [tokens] i64
    inv_freq   [width / 2] f32
    returns    [tokens, heads, width]
    """
    return kernels_for(x).rope(x, positions, inv_freq)


def write_latent(cache: Tensor, slots: Tensor, latent: Tensor, rope_key: Tensor) -> None:
    """Write tokens into the latent KV cache of one layer.

    cache     [blocks, block_tokens, kv_lora + rope], a view with any stride between blocks
    slots     [tokens] i64, block * block_tokens + offset
    latent    [tokens, kv_lora]
    rope_key  [tokens, rope], already rotated
    """
    kernels_for(cache).write_latent(cache, slots, latent, rope_key)


def norm_rope_store(
    cache: Tensor,
    slots: Tensor,
    latent: Tensor,
    rope_key: Tensor,
    weight: Tensor,
    eps: float,
    positions: Tensor,
    inv_freq: Tensor,
) -> None:
    """`write_latent` of `rms_norm(latent)` and `rope(rope_key)`.

    cache      [blocks, block_tokens, kv_lora + rope], a view with any stride between blocks
    slots      [tokens] i64
    latent     [tokens, kv_lora], the last dimension contiguous
    rope_key   [tokens, rope], the last dimension contiguous
    weight     [kv_lora] bf16, of the norm
    positions  [tokens] i64
    inv_freq   [rope / 2] f32
    """
    kernels_for(cache).norm_rope_store(cache, slots, latent, rope_key, weight, eps, positions, inv_freq)


def pack_linear(weight: Tensor) -> LinearWeight:
    """Pack a dense weight [out, in] bf16 for `linear`; the caller may drop its own copy."""
    return kernels_for(weight).pack_linear(weight)


def linear(x: Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None) -> Tensor:
    """x W^T.

    x          [tokens, in]
    out_dtype  dtype of the result, default as x; float32 for logits
    returns    [tokens, out]
    """
    return kernels_for(x).linear(x, weight, out_dtype)


def pack_heads(weight: Tensor) -> HeadWeight:
    """Pack one weight per head, [heads, out, in] bf16, for `head_linear`."""
    return kernels_for(weight).pack_heads(weight)


def head_linear(x: Tensor, weight: HeadWeight) -> Tensor:
    """x[:, h] W[h]^T for every head: the absorbed key and value projections of MLA.

    x        [tokens, heads, in], the last dimension contiguous
    returns  [tokens, heads, out]
    """
    return kernels_for(x).head_linear(x, weight)


def route(
    hidden: Tensor,
    gate: Tensor,
    bias: Tensor,
    *,
    top_k: int,
    num_groups: int,
    topk_groups: int,
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Choose each token's experts, in float32 throughout (`services/model/README.md`).

    hidden   [tokens, hidden]
    gate     [experts, hidden] f32, or bf16 as in the checkpoint, which tensor cores multiply exactly too
    bias     [experts] f32, used for the choice only
    returns  ids [tokens, top_k] i32, best first; weights [tokens, top_k] f32
    """
    return kernels_for(hidden).route(
        hidden,
        gate,
        bias,
        top_k=top_k,
        num_groups=num_groups,
        topk_groups=topk_groups,
        normalize=normalize,
        scale=scale,
    )


def pack_experts(experts: Iterable[ExpertTensors | tuple[Tensor, ...]]) -> ExpertWeights:
    """Pack routed experts for `expert_mlp`, one at a time, so that a lazy iterable bounds the memory in use.

    experts  (gate_packed, gate_scale, up_packed, up_scale, down_packed, down_scale) each, as in the checkpoint, on the
             device that will hold them
    """
    rest = iter(experts)
    first = next(rest, None)
    if first is None:
        return CPU.pack_experts(())
    return kernels_for(first[0]).pack_experts(chain((first,), rest))


def expert_mlp(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    experts: ExpertWeights,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the weighted sum of each token's local experts, down(silu(gate(x)) * up(x)), exact on a grid (`grid.py`).

    x             [tokens, hidden]
    topk_ids      [tokens, top_k] i32, index into `experts`, -1 where another shard holds the expert
    topk_weights  [tokens, top_k] f32
    out_dtype     float64: the exact sum, to which other shards' sums can be added; float32: rounded, for a complete sum
    returns       [tokens, hidden]; zeros for a token without a local expert
    """
    return kernels_for(x).expert_mlp(x, topk_ids, topk_weights, experts, out_dtype)


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    softmax_scale: float,
) -> Tensor:
    """Absorbed attention over the paged latent KV, one query token per row.

    q_latent      [rows, heads, kv_lora], q_nope times W_UK
    q_rope        [rows, heads, rope], rotated
    cache         [blocks, block_tokens, kv_lora + rope] view of one layer
    block_tables  [rows, max_blocks] i32; entries past the context are not read
    context_lens  [rows] i32, the row's own token included; 0 gives zeros
    returns       [rows, heads, kv_lora]
    """
    return kernels_for(cache).mla_decode(q_latent, q_rope, cache, block_tables, context_lens, softmax_scale)


def mla_prefill(
    q_nope: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_table: Tensor,
    context_len: int,
    kv_b: LinearWeight,
    v_dim: int,
    softmax_scale: float,
    expanded: ExpandedContext | None = None,
) -> Tensor:
    """Causal attention of one chunk: the last tokens of a context that is already in the cache.

    q_nope       [tokens, heads, nope]
    q_rope       [tokens, heads, rope], rotated
    cache        [blocks, block_tokens, kv_lora + rope] view of one layer
    block_table  [blocks of the generation] i32
    context_len  tokens in the context, the chunk included
    kv_b         [heads * (nope + v_dim), kv_lora], per head the key rows, then the value rows
    expanded     keys and values of the chunks before, to which this chunk's are added; on CPUs only
    returns      [tokens, heads, v_dim]
    """
    return kernels_for(cache).mla_prefill(
        q_nope, q_rope, cache, block_table, context_len, kv_b, v_dim, softmax_scale, expanded
    )


def vit_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Attention of every row to all rows of its own item: softmax(q k^T / sqrt(width)) v, softmax in float32.

    q, k, v  [rows, heads, width], each head's columns contiguous; the rows of an item are consecutive
    lengths  rows of each item
    returns  [rows, heads, width]
    """
    return vision_for(q).vit_attention(q, k, v, lengths)


def draw(logits: Tensor, shapes: Shapes, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw one token of every row, and return also the row's largest logit. On a GPU the host does not wait.

    logits   [rows, vocab_size] f32, contiguous
    allowed  [rows, vocab_size] bool; None: all may be drawn, and a row with none gets token 0
    returns  token ids [rows] i64, largest logits [rows] f32, infinite or NaN where no token can be chosen
    """
    return sampling_for(logits).draw(logits, shapes, allowed)


def log_totals(logits: Tensor) -> Tensor:
    """Return the log of the sum of exponentials, [rows] f64, of logits [rows, vocab_size] f32."""
    return sampling_for(logits).log_totals(logits)


def describe(device: torch.device | None = None) -> dict[str, str]:
    """Return the implementation of each operation on a device, by default the CPU; for the log line at start."""
    return kernels_on(device or torch.device("cpu")).describe()
