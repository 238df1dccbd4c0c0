"""The compiled kernels as Python functions: C signatures, and the instruction sets of this CPU."""

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

# Features that /proc/cpuinfo must list, for each library of build.py.
_AVX2 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"}
_AVX512 = {*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
NEEDED_FLAGS = {
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512bf16": {*_AVX512, "avx512_bf16"},
    "amx": {*_AVX512, "avx512_bf16", "amx_tile", "amx_bf16"},
}
AMD = "AuthenticAMD"

_I = ctypes.c_int64
_P = ctypes.c_void_p
_F = ctypes.c_float

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "permitted": (_I, []),
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
    "decode_step": (None, [*[_P] * 4, _I]),
    "route": (None, [_P, _I, _I, _P, _P, *[_I] * 7, _F, _P, _P, _I]),
}

# These take a few microseconds and keep the interpreter lock, because releasing and retaking it would take longer.
BRIEF = {
    "rms_norm",
    "add_rms_norm",
    "norm_rope_store",
    "silu_mul",
    "rope",
    "write_latent",
    "permitted",
    "packed_linear_bytes",
    "expert_bytes",
}


class Library:
    """The functions of one compiled library. All except BRIEF ones release the interpreter lock."""

    permitted: Callable[..., int]
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
    decode_step: Callable[..., None]
    route: Callable[..., None]

    def __init__(self, path: Path) -> None:
        releasing, keeping = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(keeping if name in BRIEF else releasing, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        if not self.permitted():
            raise PermissionError(f"{path.name}: the system does not let this process use the CPU's tile unit")


@dataclass(frozen=True)
class Cpu:
    """Vendor and features of the first CPU in /proc/cpuinfo; empty if unknown."""

    vendor: str
    flags: frozenset[str]


def this_cpu() -> Cpu:
    """Return vendor and features of the CPU that runs this process."""
    path = Path("/proc/cpuinfo")
    if platform.machine() not in {"x86_64", "AMD64"} or not path.exists():
        return Cpu("", frozenset())
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    found: dict[str, str] = {}
    for key, value in pairs:
        found.setdefault(key.strip(), value.strip())
    return Cpu(found.get("vendor_id", ""), frozenset(found.get("flags", "").split()))


def usable_libraries(cpu: Cpu | None = None) -> dict[str, Path]:
    """Return the built libraries that this CPU and system can run, by instruction set, the best last.

    The best one follows from the CPU alone (kernels/README.md), never from a timing: results of two libraries differ in
    the last bits, so replicas on equal machines must choose the same.
    """
    cpu = cpu or this_cpu()
    paths = {name: FOLDER / f"kernels_{name}.so" for name in preference(cpu.vendor)}
    return {n: p for n, p in paths.items() if NEEDED_FLAGS[n] <= cpu.flags and p.exists() and _permitted(n, p)}


def preference(vendor: str) -> tuple[str, ...]:
    """Return the instruction sets from worst to best, for a CPU of this vendor that has all of them."""
    # vdpbf16ps does twice the work of a float32 FMA on AMD's Zen 4 and 5, and half of it on Intel's server cores.
    middle = ("avx512", "avx512bf16") if vendor == AMD else ("avx512bf16", "avx512")
    return ("avx2", *middle, "amx")


def _permitted(name: str, path: Path) -> bool:
    # The system must permit the tile unit; sandboxes and old systems refuse it.
    try:
        return name != "amx" or bool(Library(path).permitted())
    except PermissionError:
        return False
