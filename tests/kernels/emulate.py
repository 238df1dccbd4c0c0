"""Build the AMX and AVX512 kernels for a CPU without either: `python tests/kernels/emulate.py` (SIMDe, minutes).

The libraries are put into `built`; while they exist, the tests of this folder include them.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER.parent.parent / "kernels" / "native"

if __name__ == "__main__":
    # No optimisation: with it, the emulation in long unrolled loops takes the compiler hours.
    flags = ["-O0", "-std=c++20", "-w", "-march=x86-64-v3", "-pthread", "-fPIC", "-shared"]
    kinds = [f"-DMOONSHARD_{name}" for name in ("AVX512", "BF16_DOT", "AMX", "EMULATED_AMX")]
    shim = ["-include", str(FOLDER / "emulated_avx512.h")]
    target = FOLDER / "built" / "kernels_amx.so"
    target.parent.mkdir(exist_ok=True)
    subprocess.run(["g++", *flags, *kinds, *shim, *map(str, SOURCES.glob("*.cpp")), "-o", str(target)], check=True)
    sys.stdout.write(f"{target}\n")
