"""The interface chooses an implementation once, names it, and calls it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import kernels
from kernels.choice import AUTO, CPU, chosen, kernels_for
from kernels.native import library as native_library
from kernels.native.build import LIBRARIES, library_path
from kernels.native.library import AMD, NEEDED_FLAGS, SIGNATURES, Cpu, Library, this_cpu, usable_libraries
from kernels.reference.text import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]


def test_every_operation_is_described():
    assert set(kernels.describe()) == set(OPERATIONS)
    assert set(OPERATIONS) <= set(kernels.__all__)


def test_the_best_implementation_is_chosen():
    assert kernels_for(torch.ones(1)) is CPU
    assert chosen(AUTO).describe() == list(kernels.implementations().values())[-1].describe()


INTEL = "GenuineIntel"
HAS_ALL = frozenset.union(*map(frozenset, NEEDED_FLAGS.values()))


@pytest.mark.parametrize(
    "vendor, flags, permitted, best",
    [
        pytest.param(INTEL, HAS_ALL, True, "amx", id="sapphire-rapids"),
        pytest.param(INTEL, HAS_ALL, False, "avx512", id="sapphire-rapids-in-a-sandbox"),
        pytest.param(INTEL, NEEDED_FLAGS["avx512bf16"], True, "avx512", id="slow-bf16-dot-product"),
        pytest.param(INTEL, NEEDED_FLAGS["avx512"], True, "avx512", id="ice-lake"),
        pytest.param(AMD, NEEDED_FLAGS["avx512bf16"], True, "avx512bf16", id="zen-4"),
        pytest.param(AMD, NEEDED_FLAGS["avx2"], True, "avx2", id="zen-3"),
        pytest.param("", frozenset(), True, None, id="unknown"),
    ],
)
def test_the_rule(monkeypatch, vendor, flags, permitted, best):
    """The rule of README.md, for vendors and features other than this machine's."""
    if not all(library_path(name).exists() for name in LIBRARIES):
        pytest.skip("not every library is built")
    monkeypatch.setattr(native_library, "_permitted", lambda name, path: permitted or name != "amx")
    found = usable_libraries(Cpu(vendor, frozenset(flags)))
    assert ([*found] or [None])[-1] == best


def test_a_refused_tile_unit_is_not_used():
    if not library_path("amx").exists() or "amx_tile" in this_cpu().flags:
        pytest.skip("no AMX library, or a CPU with the unit")
    with pytest.raises(PermissionError, match="tile unit"):
        Library(library_path("amx"))
    assert "amx" not in usable_libraries(Cpu(INTEL, HAS_ALL))


@pytest.mark.parametrize("name", kernels.implementations())
def test_a_name_selects_an_implementation(name):
    assert chosen(name).describe() == kernels.implementations()[name].describe()


@pytest.mark.slow
def test_a_setting_forces_an_implementation():
    code = "import kernels; print(kernels.describe()['linear'])"

    def run(name):
        environment = {**os.environ, "MOONSHARD_KERNELS": name}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    for name in set(kernels.implementations()) - {"reference", "portable"}:
        assert f"native {name}, " in run(name).stdout
    assert "native" not in run("portable").stdout
    assert "MOONSHARD_KERNELS=avx1024 cannot be used here, only auto, reference, portable" in run("avx1024").stderr


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
    if not NEEDED_FLAGS["avx2"] <= this_cpu().flags:
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
