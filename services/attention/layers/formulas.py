"""The layers of the model as formulas: MLA in both forms, dense MLP, router and experts.

The only await is on a dispatch to experts, so while one micro-batch waits another one computes on the same loop.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import (
    ExpandedContext,
    absorbed_attention,
    add_rms_norm,
    head_linear,
    linear,
    mla_decode,
    mla_prefill,
    mlp,
    norm_rope_store,
    rms_norm,
    rope,
    route,
)
from kernels.interface import Routing
from services.attention.experts.experts import Experts
from services.attention.layers.batch import Batch
from services.attention.layers.weights import EndWeights, LayerWeights, PackedAttention, Router
from services.checkpoint.config import TextConfig
from services.model.device import to_device


def embed(
    token_ids: Tensor, ends: EndWeights, dtype: torch.dtype, media: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the hidden states before the first layer, [tokens, hidden] in `dtype`.

    token_ids  [tokens] i64
    media      places [n] i64 among the tokens and the features [n, hidden] that stand there instead of embeddings
    """
    hidden = ends.embedding[token_ids].to(dtype)
    if media is not None:
        places, features = media
        hidden[to_device(places, hidden.device)] = to_device(features, hidden.device).to(dtype)
    return hidden


def logits(hidden: Tensor, ends: EndWeights, config: TextConfig) -> Tensor:
    """Return logits [rows, vocab_size] f32 of the last layer's hidden states [rows, hidden]."""
    return linear(rms_norm(hidden, ends.final_norm, config.rms_norm_eps), ends.head, torch.float32)


async def forward_layers(
    hidden: Tensor,
    batch: Batch,
    layers: Sequence[LayerWeights],
    cache: Tensor,
    config: TextConfig,
    experts: Experts,
    *,
    step: int,
    micro_batch: int,
    latent_norm_eps: float,
    expanded: Sequence[Sequence[ExpandedContext] | None] = (),
) -> Tensor:
    """Return the hidden states after a shard's layers: h = h + attention(norm(h)), then h = h + mlp(norm(h)), for each.

    hidden    [tokens, hidden] of the batch
    cache     [num_blocks, len(layers), block_tokens, latent_dim], gets the latent KV of the batch
    expanded  for each segment keys and values of its earlier chunks by layer, or None; empty: of no segment
    returns   like hidden
    """
    for place, layer in enumerate(layers):
        x = rms_norm(hidden, layer.input_norm, config.rms_norm_eps)
        contexts = [None if of_segment is None else of_segment[place] for of_segment in expanded]
        heads = attention(x, batch, layer.attention, cache[:, place], config, latent_norm_eps, contexts)
        hidden, x = add_rms_norm(hidden, heads, layer.post_norm, config.rms_norm_eps)
        if layer.router is None:
            hidden = hidden + mlp(x, layer.mlp.gate_up, layer.mlp.down)
            continue
        ids, weights = choose_experts(x, layer.router, config)
        routed = experts.dispatch(step, layer.index, micro_batch, x, ids, weights)
        # The shared expert is computed while the routed ones are away.
        shared = mlp(x, layer.mlp.gate_up, layer.mlp.down)
        # The routed sum is fp32, so both additions are; one rounding follows.
        hidden = (hidden + (await routed + shared)).to(hidden.dtype)
    return hidden


def attention(
    x: Tensor,
    batch: Batch,
    weights: PackedAttention,
    cache: Tensor,
    config: TextConfig,
    latent_norm_eps: float,
    expanded: Sequence[ExpandedContext | None] = (),
) -> Tensor:
    """Write the latent KV of new tokens, then return their multi-head latent attention to everything before them.

    [q_lat, c, k_pe] = x W_a^T;  c = norm(c);  k_pe = rope(k_pe), one for all heads
    [q_nope, q_pe][h] = (norm(q_lat) W_qb^T)[h];  q_pe = rope(q_pe)
    result = concat_h(o[h]) W_o^T, with o as in `decode` or `prefill`. Without chunks it is one operation.

    x         [tokens, hidden]
    cache     [blocks, block_tokens, latent_dim], the view of this layer
    expanded  as of `prefill`
    returns   [tokens, hidden]
    """
    if not batch.segments:
        places = batch.slots, batch.positions, batch.block_tables, batch.context_lens
        return absorbed_attention(x, weights, cache, *places, latent_norm_eps)
    q_latent, latent, rope_key = linear(x, weights.qkv_a).split_with_sizes(
        [config.q_lora_rank, config.kv_lora_rank, config.qk_rope_head_dim], dim=-1
    )
    norm_rope_store(
        cache,
        batch.slots,
        latent,
        rope_key,
        weights.kv_a_norm,
        latent_norm_eps,
        batch.positions,
        weights.inv_freq,
    )

    q = linear(rms_norm(q_latent, weights.q_a_norm, latent_norm_eps), weights.q_b)
    q_nope, q_rope = q.view(-1, config.num_attention_heads, config.qk_head_dim).split_with_sizes(
        [config.qk_nope_head_dim, config.qk_rope_head_dim], dim=-1
    )
    q_rope = rope(q_rope, batch.positions, weights.inv_freq)
    heads = torch.cat(prefill(q_nope, q_rope, batch, weights, cache, config, expanded))
    if batch.num_decode:
        rows = slice(batch.num_decode)
        heads = torch.cat([decode(q_nope[rows], q_rope[rows], batch, weights, cache), heads])
    return linear(heads.flatten(1), weights.o)


def decode(q_nope: Tensor, q_rope: Tensor, batch: Batch, weights: PackedAttention, cache: Tensor) -> Tensor:
    """Return attention in the absorbed form, for generated tokens: [num_decode, heads, v].

    q_abs[h] = q_nope[h] W_UK[h];  p = softmax((q_abs[h] . c + q_pe[h] . k_pe) * s);  o[h] = (sum p c) W_UV[h]^T
    """
    q_absorbed = head_linear(q_nope, weights.key_absorbed)
    o_latent = mla_decode(q_absorbed, q_rope, cache, batch.block_tables, batch.context_lens, weights.softmax_scale)
    return head_linear(o_latent, weights.value_up)


def prefill(
    q_nope: Tensor,
    q_rope: Tensor,
    batch: Batch,
    weights: PackedAttention,
    cache: Tensor,
    config: TextConfig,
    expanded: Sequence[ExpandedContext | None] = (),
) -> list[Tensor]:
    """Return attention in the expanded form, for chunks of prompts: [tokens of the chunk, heads, v] each.

    [k_nope, v][h] = (c W_kvb^T)[h];  p = softmax((q_nope[h] . k_nope[h] + q_pe[h] . k_pe) * s);  o[h] = sum p v[h]

    expanded  for each segment k_nope and v of its earlier chunks, or None; empty: of no segment
    """
    kept = expanded or [None] * len(batch.segments)
    return [
        mla_prefill(
            q_nope[segment.tokens],
            q_rope[segment.tokens],
            cache,
            segment.block_table,
            segment.context_len,
            weights.kv_b,
            config.v_head_dim,
            weights.softmax_scale,
            context,
        )
        for segment, context in zip(batch.segments, kept, strict=True)
    ]


def choose_experts(x: Tensor, router: Router, config: TextConfig) -> tuple[Tensor, Tensor]:
    """Return ids [tokens, top_k] i32 and weights [tokens, top_k] f32 of each token's routed experts."""
    return route(x, router.gate, router.bias, **routing(config)._asdict())


def routing(config: TextConfig) -> Routing:
    """Return how the routers of a model choose and weigh."""
    return Routing(
        config.num_experts_per_tok,
        config.n_group,
        config.topk_group,
        config.norm_topk_prob,
        config.routed_scaling_factor,
    )
