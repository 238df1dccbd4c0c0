"""Run the tests of the native code under a sanitizer: `python -m tests.kernels.sanitize address`, or `thread`.

The libraries that this CPU can run, and the AMX library with its tile unit in plain C++, are compiled with the
sanitizer into a temporary folder. Python itself is not, so the sanitizer's own library is preloaded, and only accesses
by our code are checked.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from kernels.native.library import usable_libraries

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "kernels" / "native" / "build.py"
TESTS = [
    f"tests/kernels/test_{name}.py"
    for name in ("amx", "attention", "dense", "elementwise", "experts", "fused", "router")
]
# Without libstdc++, the first C++ exception ends the process. Leaks are not checked: Python never frees some memory.
PRELOADED = {"address": ["libasan.so", "libstdc++.so"], "thread": ["libtsan.so"]}
OPTIONS = {
    "address": {"ASAN_OPTIONS": "detect_leaks=0"},
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1"},
}


def shared_library(name: str) -> str:
    """Return the path of one of the compiler's own libraries."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    kind, *arguments = sys.argv[1:]
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        sys.exit("needs a C++ compiler (set CXX)")
    folder = ROOT / ".venv" / f"native-{kind}"
    names = set(usable_libraries())
    names |= {"amx"} if "avx512bf16" in names else set()
    build = [sys.executable, str(BUILD), "--sanitize", kind, "--emulate", "--into", str(folder), "--only", *names]
    subprocess.run(build, check=True)
    preloaded = ":".join(shared_library(name) for name in PRELOADED[kind])
    environment = {"LD_PRELOAD": preloaded, "OMP_NUM_THREADS": "1", "MOONSHARD_TEST_LIBRARIES": str(folder)}
    tests = [sys.executable, "-m", "pytest", "--capture=no", *TESTS, *arguments]
    return subprocess.run(tests, cwd=ROOT, env={**os.environ, **environment, **OPTIONS[kind]}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
