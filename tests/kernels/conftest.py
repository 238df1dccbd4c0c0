"""Fixtures for every implementation of the kernels that can run on this machine.

The AMX kernels run on the tile unit where the CPU has one, and on every CPU with a tile unit in plain C++, which the
first test that uses it compiles. The Triton kernels run on a GPU if there is one, else in Triton's interpreter.

With MOONSHARD_TEST_LIBRARIES=FOLDER only the native libraries of this folder are tested, such as those made by
`kernels/native/build.py --sanitize`.
"""

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

# Triton reads this once, at its import.
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
    """Correct bfloat16 in Triton's interpreter, if there is no GPU."""
    from tests.kernels import interpreter  # noqa: PLC0415

    interpreter.install()


def makers() -> tuple[dict[str, Make], list[str]]:
    """Return functions that make the implementations, by name, and the names of the native ones."""
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
    """Compile what the selected tests need before the first of them, because a test's time is limited."""
    if any("amx-emulated" in item.name for item in items):
        emulated_amx()


@cache
def implementation(name: str) -> object:
    return MAKERS[name]()


@pytest.fixture(params=[name for name in MAKERS if name != "reference"])
def fast(request):
    """Return an implementation other than the reference."""
    return implementation(request.param)


@pytest.fixture(params=NATIVE)
def native(request):
    """Return an implementation whose results do not depend on the batch."""
    return implementation(request.param)


@pytest.fixture(params=list(MAKERS))
def kernels(request):
    """Return an implementation, the reference included."""
    return implementation(request.param)


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture
def oracle():
    return reference


@pytest.fixture(autouse=True, scope="session")
def interpreted():
    """Set up Triton's interpreter for files that import Triton themselves."""
    if "triton" in sys.modules and not torch.cuda.is_available():
        make_the_interpreter_right()


@pytest.fixture(autouse=True)
def seeded():
    """Seed each test, so that it draws the same numbers after any other."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def threads():
    """Use one thread unless the test sets more: results are the same, and a busy machine slows it down less."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def infinity_is_a_number():
    """Silence NumPy, with which the interpreter computes, about overflows to infinity, which GPUs do not report."""
    with np.errstate(all="ignore"):
        yield
