"""Every implementation of the kernels that can run here, as a fixture and as an oracle.

The AMX kernels run on the tile unit where there is one, and everywhere on one in plain C++, which the first test that
wants it compiles. The Triton kernels run on a GPU if there is one, else in Triton's interpreter.

MOONSHARD_TEST_LIBRARIES=FOLDER puts the native libraries of that folder in the place of all others: those that
`kernels/native/build.py --sanitize` makes.
"""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

# Triton reads this once, while it is imported.
os.environ["TRITON_INTERPRET"] = str(int(not torch.cuda.is_available()))

from kernels import implementations
from kernels.native.kernels import NativeKernels
from kernels.reference import text as reference
from tests.kernels.libraries import emulated_amx

Make = Callable[[], object]


def emulated() -> object:
    path = emulated_amx()
    if path is None:
        pytest.skip("the AMX kernels cannot be compiled for this CPU (tests/kernels/emulate.py)")
    return NativeKernels("amx, emulated", path)


def triton() -> object:
    from kernels.gpu.kernels import TritonKernels  # noqa: PLC0415 - a second that most runs need not spend
    from tests.kernels.on_device import OnDevice  # noqa: PLC0415

    if torch.cuda.is_available():
        return OnDevice(TritonKernels(), "cuda")
    make_the_interpreter_right()
    return TritonKernels()


def make_the_interpreter_right() -> None:
    """bfloat16 in Triton's interpreter, if there is no GPU."""
    from tests.kernels import interpreter  # noqa: PLC0415

    interpreter.install()


def makers() -> tuple[dict[str, Make], list[str]]:
    """Return what makes each implementation, and the names of the native ones."""
    if folder := os.environ.get("MOONSHARD_TEST_LIBRARIES"):
        paths = {path.stem.removeprefix("kernels_"): path for path in sorted(Path(folder).glob("kernels_*.so"))}
        assert paths, f"no kernels_*.so in {folder}"
        native: dict[str, Make] = {n: lambda n=n, p=p: NativeKernels(n, p) for n, p in paths.items()}  # type: ignore[misc]
        return {"reference": lambda: reference, **native}, list(native)
    found = implementations()
    names = [name for name, kernels in found.items() if isinstance(kernels, NativeKernels)]
    made: dict[str, Make] = {name: lambda kernels=kernels: kernels for name, kernels in found.items()}  # type: ignore[misc]
    return {**made, "amx-emulated": emulated, "triton": triton}, [*names, "amx-emulated"]


MAKERS, NATIVE = makers()


def pytest_collection_modifyitems(items):
    """Compile what the chosen tests want before the first of them, whose time is limited."""
    if any("amx-emulated" in item.name for item in items):
        emulated_amx()


@cache
def implementation(name: str) -> object:
    return MAKERS[name]()


@pytest.fixture(params=[name for name in MAKERS if name != "reference"])
def fast(request):
    """An implementation to compare with the reference."""
    return implementation(request.param)


@pytest.fixture(params=NATIVE)
def native(request):
    """An implementation that promises results independent of the batch."""
    return implementation(request.param)


@pytest.fixture(params=list(MAKERS))
def kernels(request):
    """Any implementation, the reference included."""
    return implementation(request.param)


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    """The dtype of the run."""
    return getattr(torch, request.param)


@pytest.fixture
def oracle():
    """The truth."""
    return reference


@pytest.fixture(autouse=True, scope="session")
def interpreted():
    """Files that import Triton themselves rely on this."""
    if "triton" in sys.modules and not torch.cuda.is_available():
        make_the_interpreter_right()


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
