"""The compiled kernels as Python functions: which instruction sets this CPU has, and the C signatures."""

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

# What /proc/cpuinfo must list for a library of build.py.
NEEDED_FLAGS = {
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"},
    "avx512bf16": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_bf16"},
}

_I = ctypes.c_int64
_P = ctypes.c_void_p
_F = ctypes.c_float

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "packed_linear_bytes": (_I, [_I] * 2),
    "pack_linear": (None, [_P, _I, _I, _I, _P, _I]),
    "linear": (None, [_P, _P, _I, _P, _I, *[_I] * 9]),
    "expert_bytes": (_I, [_I] * 2),
    "pack_expert": (None, [*[_P] * 6, _I, _I, _P, _I]),
    "expert_mlp": (None, [_P, _I, _I, _I, _P, _I, _I, _P, _P, _I, _I, _P, _I]),
    "mla_decode": (None, [_P, _P, _P, _I, _P, _P, _P, *[_I] * 5, _P, _F, _I]),
    "mla_prefill": (None, [*[_P] * 4, _I, _P, *[_I] * 6, _P, _F, _I]),
    "rms_norm": (None, [_P, _I, _I, _P, _P, _I, _I, _F, _I]),
    "add_rms_norm": (None, [_P, _I, _I, _P, _I, _P, _P, _P, _I, _I, _F, _I]),
    "norm_rope_store": (None, [_P, *[_I] * 4, _P, _P, _I, _I, _P, _I, _I, _P, _F, _P, _P, _I, _I]),
    "silu_mul": (None, [_P, _I, _I, _P, _I, _I, _I]),
    "rope": (None, [_P, _I, _P, _P, _P, *[_I] * 6]),
    "write_latent": (None, [_P, _I, _I, _I, _P, _P, _I, _I, _P, _I, _I, _I]),
    "swiglu_mlp": (None, [_P, _I, _I, _P, _P, _P, *[_I] * 5]),
    "absorbed_attention": (None, [_P, _I, _I, _I, _P, _P, _F, _F, _P, _P, _I, _P, _P, _P, _I, _P, _P, _I]),
    "route": (None, [_P, _I, _I, _P, _P, *[_I] * 7, _F, _P, _P, _I]),
}

# Done in a few microseconds: they keep the interpreter lock, since to give it up and wait for it again would cost more.
BRIEF = {
    "rms_norm",
    "add_rms_norm",
    "norm_rope_store",
    "silu_mul",
    "rope",
    "write_latent",
    "packed_linear_bytes",
    "expert_bytes",
}


class Library:
    """The functions of one compiled library. All but the brief ones release the interpreter lock."""

    packed_linear_bytes: Callable[..., int]
    pack_linear: Callable[..., None]
    linear: Callable[..., None]
    expert_bytes: Callable[..., int]
    pack_expert: Callable[..., None]
    expert_mlp: Callable[..., None]
    mla_decode: Callable[..., None]
    mla_prefill: Callable[..., None]
    rms_norm: Callable[..., None]
    add_rms_norm: Callable[..., None]
    norm_rope_store: Callable[..., None]
    silu_mul: Callable[..., None]
    rope: Callable[..., None]
    write_latent: Callable[..., None]
    swiglu_mlp: Callable[..., None]
    absorbed_attention: Callable[..., None]
    route: Callable[..., None]

    def __init__(self, path: Path) -> None:
        releasing, keeping = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(keeping if name in BRIEF else releasing, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


def cpu_flags() -> set[str]:
    """The features that the kernel lists for the first CPU; empty where that is not known."""
    path = Path("/proc/cpuinfo")
    if platform.machine() not in {"x86_64", "AMD64"} or not path.exists():
        return set()
    lines = (line for line in path.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, ":").split(":", 1)[1].split())


def usable_libraries() -> dict[str, Path]:
    """Libraries that are built and that this CPU can run, by instruction set, the fastest last."""
    flags = cpu_flags()
    paths = {name: FOLDER / f"kernels_{name}.so" for name in NEEDED_FLAGS}
    return {name: path for name, path in paths.items() if NEEDED_FLAGS[name] <= flags and path.exists()}
