"""Causal attention of a prompt chunk on the CPU, with PyTorch's matrix products."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.expanded import ExpandedContext
from kernels.interface import LinearWeight
from kernels.reference.text import gather_context, project_context

QUERY_TILE = 128  # bounds the scores in memory to heads * QUERY_TILE * context


def mla_prefill(
    q_nope: Tensor,
    q_rope: Tensor,
    cache: Tensor,
    block_table: Tensor,
    context_len: int,
    kv_b: LinearWeight,
    v_dim: int,
    softmax_scale: float,
    expanded: ExpandedContext | None,
    *,
    linear: Callable[[Tensor, LinearWeight], Tensor],
) -> Tensor:
    """As `kernels.mla_prefill`, in float32 by tiles of queries; each tile reads only the context visible to it."""
    tokens, heads, nope = q_nope.shape
    latent, rope_key = gather_context(cache, block_table, context_len, kv_b.shape[1], q_nope.dtype)
    projected = (
        project_context(latent, kv_b, linear, expanded).view(context_len, heads, nope + v_dim).float().transpose(0, 1)
    )
    shared = rope_key.float()[None].expand(heads, -1, -1)
    key = torch.cat((projected[..., :nope], shared), dim=-1)  # [heads, context, nope + rope]
    value = projected[..., nope:].contiguous()
    query = (torch.cat((q_nope, q_rope), dim=-1).float() * softmax_scale).transpose(0, 1)  # [heads, tokens, ...]
    out = torch.empty(tokens, heads, v_dim, dtype=q_nope.dtype)
    for begin in range(0, tokens, QUERY_TILE):
        end = min(begin + QUERY_TILE, tokens)
        visible = context_len - tokens + end
        scores = query[:, begin:end] @ key[:, :visible].transpose(1, 2)
        own = torch.arange(visible - (end - begin), visible)
        scores.masked_fill_(torch.arange(visible) > own[:, None], float("-inf"))
        out[begin:end] = (scores.softmax(-1) @ value[:, :visible]).transpose(0, 1).to(out.dtype)
    return out
