"""Spoilt frames against the native wire, under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.slow
@pytest.mark.parametrize("side, count", [("shard", 1_000_000), ("client", 100_000), ("ring", 30_000)])
def test_spoilt_frames_harm_nothing(tmp_path, side, count):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "fuzz"
    command = [compiler, "-O1", "-g", "-std=c++20", "-pthread", *SANITIZERS, str(HERE / f"fuzz_{side}.cpp")]
    subprocess.run([*command, "-o", str(program)], check=True)
    found = subprocess.run([program, str(count), "7"], capture_output=True, text=True, check=False, timeout=250)
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
