"""The device of Triton kernels in tests: a GPU if there is one, else the CPU, for the interpreter."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def moved(*tensors):
    """Move tensors to this device."""
    return tuple(tensor.to(DEVICE) for tensor in tensors)
