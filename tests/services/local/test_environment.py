"""Environment variables of all processes of a cluster."""

import subprocess
from pathlib import Path

import pytest

from services.local.environment import cluster_environment


@pytest.mark.parametrize("is_crowded", [True, False])
def test_environment(is_crowded):
    caller = {"PATH": "/bin", "OMP_NUM_THREADS": "64", "MOONSHARD_STEP_TOKENS": "7"}
    environment = cluster_environment(caller, 3, is_crowded=is_crowded)
    assert environment["PATH"] == "/bin"
    assert environment["MOONSHARD_STEP_TOKENS"] == "7"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert ("OMP_WAIT_POLICY" in environment) == is_crowded
    assert caller["OMP_NUM_THREADS"] == "64"


def test_c_library_takes_the_allocator_settings():
    """glibc ignores a misspelt variable silently, so its own report of settings is checked."""
    environment = cluster_environment({}, 1, is_crowded=False)
    loaders = sorted(Path("/").glob("lib*/ld-linux*.so*"))
    if not loaders:
        pytest.skip("no glibc here")
    shown = subprocess.run([loaders[0], "--list-tunables"], env=environment, capture_output=True, text=True, check=True)
    values = dict(line.split(" (")[0].split(": ") for line in shown.stdout.splitlines() if ": " in line)
    assert int(values["glibc.malloc.mmap_threshold"], 16) == 2_000_000_000
    assert int(values["glibc.malloc.top_pad"], 16) == 64 * 2**20
