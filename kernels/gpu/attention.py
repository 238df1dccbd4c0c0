"""MLA on a GPU: its form for decode rows and its form for prompt chunks."""

from torch import Tensor

from kernels.expanded import ExpandedContext
from kernels.gpu import attention_decode, attention_prefill
from kernels.gpu.dense import Dense
from kernels.interface import LinearWeight


class Attention(Dense):
    def mla_decode(
        self,
        q_latent: Tensor,
        q_rope: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        context_lens: Tensor,
        softmax_scale: float,
    ) -> Tensor:
        return attention_decode.mla_decode(q_latent, q_rope, cache, block_tables, context_lens, softmax_scale)

    def mla_prefill(
        self,
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
        assert expanded is None, "a GPU projects the context of every chunk"
        return attention_prefill.mla_prefill(
            q_nope, q_rope, cache, block_table, context_len, kv_b, v_dim, softmax_scale, linear=self.linear
        )
