"""Every operation in plain PyTorch: the definition against which tests compare all other implementations.

Written for readability and exactness, not speed: float32 throughout, one rounding at the end, no batching tricks.
Mathematics: DeepSeek-V3's MLA and router, compressed-tensors INT4; `services/model` describes both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import silu

from kernels.expanded import ExpandedContext
from kernels.grid import on_grid
from kernels.interface import ExpertTensors, ExpertWeights, HeadWeight, LinearWeight
from kernels.reference.latent_fp8 import is_fp8, quantized, widened

GROUP = 32  # columns that share one INT4 scale


@dataclass(frozen=True)
class PlainLinear(LinearWeight):
    weight: Tensor  # [out, in] bf16


@dataclass(frozen=True)
class PlainHeads(HeadWeight):
    weight: Tensor  # [heads, out, in] bf16


@dataclass(frozen=True)
class PlainExperts(ExpertWeights):
    experts: tuple[ExpertTensors, ...]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension; the normalised value is rounded before the weight is applied."""
    wide = x.float()
    normalised = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normalised.to(x.dtype) * weight.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return x + residual, rounded, and its norm."""
    total = x + residual
    return total, rms_norm(total, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """SwiGLU: silu of the left half times the right half, rounded once."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (silu(gate) * up).to(gate_up.dtype)


def rope(x: Tensor, positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of the last dimension by the angles position * inv_freq."""
    angle = positions.float()[:, None, None] * inv_freq.float()  # [t, 1, d / 2]
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def write_latent(cache: Tensor, slots: Tensor, latent: Tensor, rope_key: Tensor) -> None:
    """Put latent and rotated key of each token into its slot (block * block_tokens + offset) of one layer's cache."""
    block_tokens = cache.shape[1]
    if is_fp8(cache):
        latent, rope_key = quantized(latent, rope_key)
    cache[slots // block_tokens, slots % block_tokens] = torch.cat((latent, rope_key), dim=-1)


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
    key = rope(rope_key.unsqueeze(1), positions, inv_freq).squeeze(1)
    write_latent(cache, slots, rms_norm(latent, weight, eps), key)


def pack_linear(weight: Tensor) -> LinearWeight:
    return PlainLinear((weight.shape[0], weight.shape[1]), weight.nbytes, weight.contiguous())


def linear(x: Tensor, weight: LinearWeight, out_dtype: torch.dtype | None = None) -> Tensor:
    """x W^T in float32, rounded once to `out_dtype` (default: as x)."""
    assert isinstance(weight, PlainLinear)
    return (x.float() @ weight.weight.float().T).to(out_dtype or x.dtype)


def pack_heads(weight: Tensor) -> HeadWeight:
    return PlainHeads((weight.shape[0], weight.shape[1], weight.shape[2]), weight.nbytes, weight.contiguous())


def head_linear(x: Tensor, weight: HeadWeight) -> Tensor:
    """x[:, h] W[h]^T for every head h."""
    assert isinstance(weight, PlainHeads)
    return torch.einsum("thi,hoi->tho", x.float(), weight.weight.float()).to(x.dtype)


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
    """Choose by sigmoid score + bias, weight by the score alone. Best first; of equal ones the lower id first."""
    scores = (hidden.float() @ gate.float().T).sigmoid()
    choice = scores + bias
    if num_groups > 1:
        grouped = choice.reshape(len(choice), num_groups, gate.shape[0] // num_groups)
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = group_scores.sort(dim=-1, descending=True, stable=True).indices[:, :topk_groups]
        mask = torch.zeros_like(group_scores).scatter(-1, kept, 1.0).bool()
        choice = grouped.masked_fill(~mask[..., None], 0.0).flatten(-2)
    ids = choice.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(-1, ids)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids.int(), weights * scale


def dequantize(packed: Tensor, scale: Tensor) -> Tensor:
    """(nibble - 8) * scale, exact in float32.

    packed  [out, in / 8] i32, column 8 w + j in bits 4 j .. 4 j + 3 of word w
    scale   [out, in / 32] bf16
    returns [out, in] f32
    """
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    nibbles = (packed[..., None] >> shifts) & 15
    groups = (nibbles - 8).float().reshape(*scale.shape, GROUP)
    return (groups * scale.float()[..., None]).flatten(-2)


def pack_experts(experts: Iterable[ExpertTensors | tuple[Tensor, ...]]) -> ExpertWeights:
    kept = tuple(ExpertTensors(*expert) for expert in experts)
    nbytes = sum(tensor.nbytes for expert in kept for tensor in expert)
    hidden, width = (kept[0].down_packed.shape[0], kept[0].gate_packed.shape[0]) if kept else (0, 0)
    return PlainExperts(len(kept), hidden, width, nbytes, kept)


def expert_mlp(
    x: Tensor,
    topk_ids: Tensor,
    topk_weights: Tensor,
    experts: ExpertWeights,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sum weight * down(silu(gate(x)) * up(x)) over each token's local experts.

    Only the input of `down` is rounded to the dtype of x, and each term of the sum to the grid (`kernels/grid.py`).
    """
    assert isinstance(experts, PlainExperts)
    total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for index, expert in enumerate(experts.experts):
        tokens, slots = (topk_ids == index).nonzero(as_tuple=True)
        if len(tokens) == 0:
            continue
        inputs = x[tokens].float()
        gate = inputs @ dequantize(expert.gate_packed, expert.gate_scale).T
        up = inputs @ dequantize(expert.up_packed, expert.up_scale).T
        inner = (silu(gate) * up).to(x.dtype).float()
        down = inner @ dequantize(expert.down_packed, expert.down_scale).T
        total.index_add_(0, tokens, on_grid(down, topk_weights[tokens, slots, None], x.dtype))
    return total.to(out_dtype)


def gather_context(
    cache: Tensor, block_table: Tensor, context_len: int, kv_lora: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return latents and rope keys of the first `context_len` tokens of a generation, from its blocks in order.

    dtype    dtype of the run; a cache in FP8 is widened to it
    returns  [context_len, kv_lora] and [context_len, rope]
    """
    num_blocks = -(-context_len // cache.shape[1])
    context = cache[block_table[:num_blocks].long()].flatten(0, 1)[:context_len]
    if is_fp8(cache):
        context = widened(context, kv_lora, dtype)
    return context[:, :kv_lora], context[:, kv_lora:]


def project_context(
    latents: Tensor,
    kv_b: LinearWeight,
    linear: Callable[[Tensor, LinearWeight], Tensor],
    expanded: ExpandedContext | None,
) -> Tensor:
    """Return keys and values [context, heads * (nope + v_dim)] of a context; `expanded` has those of earlier chunks."""
    if expanded is None:
        return linear(latents, kv_b)
    return expanded.extend(latents, lambda rows: linear(rows, kv_b))


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    softmax_scale: float,
) -> Tensor:
    """Absorbed attention, one row at a time: every head attends to the same latents."""
    out = torch.zeros_like(q_latent)
    for row, context_len in enumerate(context_lens.tolist()):
        latents, rope_keys = gather_context(cache, block_tables[row], context_len, q_latent.shape[-1], out.dtype)
        context = torch.cat((latents, rope_keys), dim=-1).float()
        scores = torch.cat((q_latent[row], q_rope[row]), dim=-1).float() @ context.T * softmax_scale
        out[row] = (scores.softmax(-1) @ latents.float()).to(out.dtype)
    return out


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
    """Causal attention of the last t tokens of a context, with keys and values projected from the latents."""
    tokens, heads, nope = q_nope.shape
    latent, rope_key = gather_context(cache, block_table, context_len, kv_b.shape[1], q_nope.dtype)
    projected = project_context(latent, kv_b, linear, expanded).view(context_len, heads, nope + v_dim).float()
    key_nope, value = projected[..., :nope], projected[..., nope:]
    scores = torch.einsum("thd,chd->htc", q_nope.float(), key_nope)
    scores = (scores + torch.einsum("thd,cd->htc", q_rope.float(), rope_key.float())) * softmax_scale
    own = torch.arange(context_len - tokens, context_len, device=cache.device)
    future = torch.arange(context_len, device=cache.device) > own[:, None]
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return torch.einsum("htc,chd->thd", weights, value).to(q_nope.dtype)


def describe() -> dict[str, str]:
    return dict.fromkeys(OPERATIONS, "reference (plain PyTorch)")


OPERATIONS = (
    "rms_norm",
    "add_rms_norm",
    "silu_mul",
    "rope",
    "write_latent",
    "norm_rope_store",
    "linear",
    "head_linear",
    "route",
    "expert_mlp",
    "mla_decode",
    "mla_prefill",
)
