"""Builds the AVX512 kernels for a CPU without AVX512: `python tests/kernels/emulate.py` (needs SIMDe and minutes).

The library lands beside this file; while it is there, the tests of this folder run it as one more implementation.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER.parent.parent / "kernels" / "native"

if __name__ == "__main__":
    # Without optimisation: the emulation in long unrolled loops would take the compiler hours.
    flags = ["-O0", "-std=c++20", "-w", "-march=x86-64-v3", "-DMOONSHARD_AVX512", "-pthread", "-fPIC", "-shared"]
    shim = ["-include", str(FOLDER / "emulated_avx512.h")]
    target = FOLDER / "kernels_emulated.so"
    subprocess.run(["g++", *flags, *shim, *map(str, SOURCES.glob("*.cpp")), "-o", str(target)], check=True)
    sys.stdout.write(f"{target}\n")
