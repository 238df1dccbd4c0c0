"""Every implementation of the kernels that can run here, as a fixture and as an oracle.

`emulate.py` in this folder builds the AVX512 library for any CPU; once built, the tests take it as one more.
The Triton kernels run on a GPU if there is one, else in Triton's interpreter.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

# Triton reads this once, while it is imported.
os.environ["TRITON_INTERPRET"] = str(int(not torch.cuda.is_available()))

from kernels import implementations
from kernels.gpu.kernels import TritonKernels
from kernels.native.kernels import NativeKernels
from kernels.reference import text as reference
from tests.kernels import interpreter
from tests.kernels.on_device import OnDevice

EMULATED = Path(__file__).parent / "kernels_emulated.so"
IMPLEMENTATIONS = implementations()
if EMULATED.exists():
    IMPLEMENTATIONS["emulated"] = NativeKernels("emulated", EMULATED)
if torch.cuda.is_available():
    IMPLEMENTATIONS["triton"] = OnDevice(TritonKernels(), "cuda")
else:
    interpreter.install()
    IMPLEMENTATIONS["triton"] = TritonKernels()
NATIVE = {name: kernels for name, kernels in IMPLEMENTATIONS.items() if isinstance(kernels, NativeKernels)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(params=[name for name in IMPLEMENTATIONS if name != "reference"])
def fast(request):
    """An implementation to compare with the reference."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=list(NATIVE) or [pytest.param(None, marks=pytest.mark.skip(reason="no native kernels here"))])
def native(request):
    """An implementation that promises results independent of the batch."""
    return NATIVE[request.param]


@pytest.fixture(params=list(IMPLEMENTATIONS))
def kernels(request):
    """Any implementation, the reference included."""
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(params=list(DTYPES))
def dtype(request):
    """The dtype of the run."""
    return DTYPES[request.param]


@pytest.fixture
def oracle():
    """The truth."""
    return reference


@pytest.fixture(autouse=True)
def seeded():
    """Each test draws the same numbers whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads():
    """One thread unless the test sets more: the arithmetic is the same, and a busy machine does not slow it down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def infinity_is_a_number():
    """The interpreter computes with NumPy, which would warn of overflows that a GPU takes as infinity."""
    with np.errstate(all="ignore"):
        yield
