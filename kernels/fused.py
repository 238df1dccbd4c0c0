"""Several operations in one call: a single native call where there is one, else the operations one after another."""

from collections.abc import Callable, Sequence

from torch import Tensor

from kernels.choice import kernels_for
from kernels.interface import LinearWeight, MlaWeights, Routing, StepExperts, StepLayer
from kernels.native.kernels import NativeKernels
from kernels.reference.latent_fp8 import is_fp8


def mlp(x: Tensor, gate_up: LinearWeight, down: LinearWeight) -> Tensor:
    """SwiGLU between two products: down(silu(gate(x)) * up(x)).

    x        [tokens, hidden]
    gate_up  [2 * width, hidden]: gate rows, then up rows
    down     [hidden, width]
    returns  like x
    """
    kernels = kernels_for(x)
    if isinstance(kernels, NativeKernels):
        return kernels.mlp(x, gate_up, down)
    return kernels.linear(kernels.silu_mul(kernels.linear(x, gate_up)), down)


def absorbed_attention(
    x: Tensor,
    weights: MlaWeights,
    cache: Tensor,
    slots: Tensor,
    positions: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    eps: float,
) -> Tensor:
    """Multi-head latent attention of one new token per row; writes its latent KV first.

    [q_lat, c, k_pe] = x W_a^T;  c = norm(c);  k_pe = rope(k_pe), shared by all heads
    [q_nope, q_pe][h] = (norm(q_lat) W_qb^T)[h];  q_pe = rope(q_pe);  q_abs[h] = q_nope[h] W_UK[h]
    p = softmax((q_abs[h] . c + q_pe[h] . k_pe) * s);  o[h] = (sum p c) W_UV[h]^T;  result = concat_h(o[h]) W_o^T

    x                            [rows, hidden]
    cache                        [blocks, block_tokens, kv_lora + rope] view of one layer, or in FP8
    slots, positions             [rows] i64
    block_tables, context_lens   as of `mla_decode`
    eps                          used in both norms
    returns                      [rows, hidden]
    """
    kernels = kernels_for(x)
    if isinstance(kernels, NativeKernels) and not is_fp8(cache):
        return kernels.absorbed_attention(x, weights, cache, slots, positions, block_tables, context_lens, eps)
    heads, kv_lora, nope = weights.key_absorbed.shape
    q_lora = weights.q_b.shape[1]
    q_latent, latent, rope_key = kernels.linear(x, weights.qkv_a).tensor_split([q_lora, q_lora + kv_lora], dim=-1)
    kernels.norm_rope_store(cache, slots, latent, rope_key, weights.kv_a_norm, eps, positions, weights.inv_freq)
    q = kernels.linear(kernels.rms_norm(q_latent, weights.q_a_norm, eps), weights.q_b)
    q_nope, q_rope = q.view(len(x), heads, weights.q_b.shape[0] // heads).tensor_split([nope], dim=-1)
    q_rope = kernels.rope(q_rope, positions, weights.inv_freq)
    q_absorbed = kernels.head_linear(q_nope, weights.key_absorbed)
    o_latent = kernels.mla_decode(q_absorbed, q_rope, cache, block_tables, context_lens, weights.softmax_scale)
    return kernels.linear(kernels.head_linear(o_latent, weights.value_up).flatten(1), weights.o)


def decode_step(
    layers: Sequence[StepLayer],
    experts: StepExperts,
    cache: Tensor,
    routing: Routing,
    *,
    eps: float,
    latent_eps: float,
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """Return a function that runs all layers for decode rows in one native call; None: not on this device.

    The function takes hidden [rows, hidden] and slots, positions, block_tables, context_lens as `absorbed_attention`
    does, and gives the same bits as the operations one by one.

    cache       [blocks, layers, block_tokens, kv_lora + rope]
    eps         of the norms of the hidden states
    latent_eps  of the norms inside attention
    """
    kernels = kernels_for(cache)
    has_all = bool((experts.local_index >= 0).all())
    if not isinstance(kernels, NativeKernels) or is_fp8(cache) or not layers or not has_all:
        return None
    return kernels.decode_step(layers, experts, cache, routing, eps=eps, latent_eps=latent_eps)
