"""The interface chooses once, says what it chose, and works through the chosen implementation."""

import pytest
import torch

import kernels
from kernels.choice import CPU, kernels_for
from kernels.native.build import LIBRARIES
from kernels.native.library import NEEDED_FLAGS, SIGNATURES, Library, cpu_flags, usable_libraries
from kernels.reference import OPERATIONS


def test_every_operation_is_described():
    assert set(kernels.describe()) == set(OPERATIONS)
    assert set(OPERATIONS) <= set(kernels.__all__)


def test_the_fastest_implementation_is_chosen():
    assert kernels_for(torch.ones(1)) is CPU
    assert CPU.describe() == list(kernels.implementations().values())[-1].describe()


def test_other_devices_have_no_kernels_yet():
    with pytest.raises(NotImplementedError, match="meta"):
        kernels.silu_mul(torch.empty(1, 2, device="meta"))


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
