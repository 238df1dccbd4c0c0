"""Every Triton kernel compiles for Hopper without spills and with the expected tensor core instructions."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.gpu.device import MAX_SHARED_BYTES
from tests.kernels.sm90.report import all_variants

pytestmark = pytest.mark.slow

VARIANTS = {variant.name: variant for variant in all_variants()}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def reports():
    """Return the figures of each variant by name, from a process in which Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.sm90.report"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {report["name"]: report for report in map(json.loads, done.stdout.splitlines())}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", VARIANTS)
def test_compiled_for_hopper(reports, name):
    variant, report = VARIANTS[name], reports[name]
    assert report["spills"] == 0, report
    assert report["stack"] <= variant.stack, report
    assert report["shared"] <= MAX_SHARED_BYTES, report
    assert report["wgmma"] == variant.wgmma, report
    assert variant.max_loop is None or 0 < report["loop"] <= variant.max_loop, report
    assert set(report["warnings"]) <= set(variant.warnings), report


def test_every_kernel_is_compiled():
    """Launched kernels have names that end in `_kernel`."""
    sources = [path.read_text() for path in (ROOT / "kernels" / "gpu").rglob("*.py")]
    defined = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
    assert defined == {variant.kernel.__name__ for variant in VARIANTS.values()}
