"""The interface chooses once, says what it chose, and works through the chosen implementation."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import kernels
from kernels.choice import CPU, kernels_for
from kernels.native.build import LIBRARIES
from kernels.native.library import NEEDED_FLAGS, SIGNATURES, Library, cpu_flags, usable_libraries
from kernels.reference.text import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]


def test_every_operation_is_described():
    assert set(kernels.describe()) == set(OPERATIONS)
    assert set(OPERATIONS) <= set(kernels.__all__)


def test_the_fastest_implementation_is_chosen():
    assert kernels_for(torch.ones(1)) is CPU
    assert CPU.describe() == list(kernels.implementations().values())[-1].describe()


def test_other_devices_have_no_kernels_yet():
    with pytest.raises(NotImplementedError, match="meta"):
        kernels.silu_mul(torch.empty(1, 2, device="meta"))


@pytest.mark.slow
def test_a_cpu_does_not_wait_for_triton():
    code = "import kernels, sys, torch; kernels.silu_mul(torch.ones(1, 2)); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_is_built_can_be_chosen():
    assert set(LIBRARIES) == set(NEEDED_FLAGS)
    assert {"reference", "portable"} <= set(kernels.implementations())


@pytest.mark.parametrize("name", list(usable_libraries()))
def test_a_library_has_every_function(name):
    library = Library(usable_libraries()[name])
    assert all(getattr(library, function).argtypes is not None for function in SIGNATURES)


def test_the_native_kernels_are_here_if_the_cpu_can_run_them():
    if not NEEDED_FLAGS["avx2"] <= cpu_flags():
        pytest.skip("not an x86-64 CPU with AVX2")
    assert "avx2" in usable_libraries(), "run protos/build.py; without a C++ compiler the portable kernels serve"


def test_the_interface_computes(oracle):
    x, weight = torch.randn(3, 32), torch.randn(8, 32).bfloat16()
    expected = oracle.linear(x, oracle.pack_linear(weight))
    torch.testing.assert_close(kernels.linear(x, kernels.pack_linear(weight)), expected)


def test_several_threads_may_call_at_once(native, threads):
    threads(2)
    weight = native.pack_linear(torch.randn(300, 200).bfloat16())
    inputs = [torch.randn(20, 200) for _ in range(40)]
    expected = [native.linear(x, weight) for x in inputs]
    with ThreadPoolExecutor(4) as executor:
        actual = list(executor.map(lambda x: native.linear(x, weight), inputs * 5))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected * 5, strict=True))


def test_a_forked_process_still_computes(native, threads):
    threads(2)
    x, weight = torch.randn(20, 200), native.pack_linear(torch.randn(300, 200).bfloat16())
    expected = native.linear(x, weight)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"same" if torch.equal(native.linear(x, weight), expected) else b"other")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"same"
    os.close(reader)
    os.close(writer)
