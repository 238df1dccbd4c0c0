"""Where the Triton kernels run in tests: on a GPU if there is one, else in the interpreter, on the CPU's tensors."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def moved(*tensors):
    """The tensors on that device."""
    return tuple(tensor.to(DEVICE) for tensor in tensors)
