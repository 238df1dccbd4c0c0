"""Libraries of the native kernels that tests build for themselves."""

import fcntl
from pathlib import Path

from kernels.native.build import EMULATE, build, library_path
from kernels.native.library import NEEDED_FLAGS, this_cpu

BUILT = Path(__file__).resolve().parent / "built"


def emulated_amx() -> Path | None:
    """Return the AMX library with the tile unit in plain C++, compiled if need be; None where that is not possible.

    A library that `emulate.py` made for a CPU without AVX512 is taken as it is.
    """
    path = library_path("amx", BUILT)
    if not NEEDED_FLAGS["avx512bf16"] <= this_cpu().flags:
        return path if path.exists() else None
    BUILT.mkdir(exist_ok=True)
    with (BUILT / "lock").open("w") as lock:  # several test workers want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return path if build(BUILT, EMULATE, ["amx"]) else None
