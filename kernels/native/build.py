"""Compiles the native CPU kernels: one library per instruction set, from the same sources.

Run by `protos/build.py` at every install, or by hand: `python kernels/native/build.py`. The C++ compiler is `CXX`,
else g++. Without a compiler, on another architecture, or if the compilation fails, nothing is built, stderr says why,
and the portable kernels serve instead.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

# Library name -> flags. x86-64-v3 has AVX2 and FMA, x86-64-v4 has AVX512.
LIBRARIES = {
    "avx2": ["-march=x86-64-v3"],
    "avx512bf16": ["-march=x86-64-v4", "-mavx512bf16", "-DMOONSHARD_AVX512"],
}

# Kept off: -ffast-math, for a result must not depend on the shape of a loop. -Wuninitialized is wrong inside
# GCC 12's own AVX512 headers.
FLAGS = [
    *("-O3", "-std=c++20", "-fPIC", "-shared", "-pthread"),
    *("-fno-math-errno", "-fno-trapping-math"),
    *("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
]


def library_path(name: str) -> Path:
    """Where the library for an instruction set is, or would be."""
    return FOLDER / f"kernels_{name}.so"


def build() -> list[str]:
    """Compiles what is missing or older than its sources; returns the paths of all libraries there are."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if platform.machine().lower() not in {"x86_64", "amd64"} or sys.platform != "linux":
        return _nothing(f"no native kernels for {sys.platform} on {platform.machine()}")
    if compiler is None:
        return _nothing("no C++ compiler (set CXX)")
    built: list[str] = []
    for name, flags in LIBRARIES.items():
        try:
            built.append(str(_compile(compiler, name, flags)))
        except subprocess.CalledProcessError as error:
            _nothing(f"kernels for {name} did not compile:\n{error.stderr}")
    return built


def _compile(compiler: str, name: str, flags: list[str]) -> Path:
    target = library_path(name)
    sources = sorted(FOLDER.glob("*.cpp"))
    inputs = [*sources, *FOLDER.glob("*.h"), Path(__file__)]
    if target.exists() and target.stat().st_mtime > max(path.stat().st_mtime for path in inputs):
        return target
    # Written beside the target and renamed, so that a process never loads half a library.
    partial = target.with_suffix(f".{os.getpid()}.partial")
    command = [compiler, *FLAGS, *flags, *map(str, sources), "-o", str(partial)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _nothing(reason: str) -> list[str]:
    sys.stderr.write(f"{reason}; the portable kernels will be used\n")
    return []


if __name__ == "__main__":
    sys.stdout.writelines(f"{path}\n" for path in build())
