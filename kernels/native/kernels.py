"""All operations through one compiled library.

Every result of a row is bitwise independent of the other rows of the call, of their number and of the number of
threads (torch.get_num_threads() at the time of the call). `mla_prefill` alone is PyTorch and promises no such thing.
"""

from pathlib import Path

import torch
from torch import Tensor

from kernels import attention
from kernels.interface import LinearWeight
from kernels.native.attention import Attention
from kernels.native.dense import Dense
from kernels.native.elementwise import Elementwise
from kernels.native.experts import Experts
from kernels.native.library import Library
from kernels.reference import OPERATIONS


class NativeKernels(Elementwise, Dense, Experts, Attention):
    """Implements `kernels.interface.Kernels` on the CPU."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(Library(path))
        self._name = name

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
    ) -> Tensor:
        return attention.mla_prefill(
            q_nope, q_rope, cache, block_table, context_len, kv_b, v_dim, softmax_scale, linear=self.linear
        )

    def describe(self) -> dict[str, str]:
        native = f"native {self._name}, {torch.get_num_threads()} threads"
        return dict.fromkeys(OPERATIONS, native) | {"mla_prefill": f"{native}, attention in PyTorch"}
