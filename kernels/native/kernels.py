"""All operations by one compiled library.

The bits of a row's result depend neither on the other rows of the call, nor on the chunks in which a prompt is
computed, nor on the number of threads (torch.get_num_threads() at the time of the call).
"""

from pathlib import Path

import torch

from kernels.native.attention import Attention
from kernels.native.elementwise import Elementwise
from kernels.native.experts import Experts
from kernels.native.fused import Fused
from kernels.native.library import Library
from kernels.reference.text import OPERATIONS


class NativeKernels(Elementwise, Attention, Experts, Fused):
    """`kernels.interface.Kernels` on the CPU."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(Library(path))
        self._name = name

    def describe(self) -> dict[str, str]:
        return dict.fromkeys(OPERATIONS, f"native {self._name}, {torch.get_num_threads()} threads")
