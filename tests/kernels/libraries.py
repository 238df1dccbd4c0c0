"""Native libraries that only tests build."""

import fcntl
from pathlib import Path

from kernels.native.build import EMULATE, build, library_path
from kernels.native.library import NEEDED_FLAGS, this_cpu

BUILT = Path(__file__).resolve().parent / "built"


def emulated_amx() -> Path | None:
    """Return the AMX library with the tile unit in plain C++, compiled on first use; None where that is impossible.

    A library made by `emulate.py` for a CPU without AVX512 is used if it exists.
    """
    path = library_path("amx", BUILT)
    if not NEEDED_FLAGS["avx512bf16"] <= this_cpu().flags:
        return path if path.exists() else None
    BUILT.mkdir(exist_ok=True)
    with (BUILT / "lock").open("w") as lock:  # several test workers may need it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path if build(BUILT, EMULATE, ["amx"]) else None
