"""All operations on a GPU."""

import triton

from kernels.gpu.attention import Attention
from kernels.gpu.elementwise import Elementwise
from kernels.gpu.experts import Experts
from kernels.gpu.router import Router
from kernels.reference.text import OPERATIONS


class TritonKernels(Attention, Elementwise, Router, Experts):
    """Implements `kernels.interface.Kernels` for CUDA tensors; for CPU tensors in Triton's interpreter."""

    def describe(self) -> dict[str, str]:
        dense = dict.fromkeys(("linear", "head_linear"), "cuBLAS")
        return dict.fromkeys(OPERATIONS, f"Triton {triton.__version__}") | dense
