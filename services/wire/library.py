"""The compiled hot wire as Python functions; None where it was not built."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).resolve().parent / "native" / "wire.so"

_P, _I, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "wire_turn_new": (_P, []),
    "wire_turn_delete": (None, [_P]),
    "wire_session_new": (_P, [_P, _P]),
    "wire_session_delete": (None, [_P]),
    "wire_session_answer": (_SIZE, [_P, _P, _SIZE, _I, ctypes.POINTER(_P)]),
    "wire_serve": (_I, [_P, _P, _I]),
}


class Library:
    """Every function releases the interpreter lock."""

    wire_turn_new: Callable[..., int]
    wire_turn_delete: Callable[..., None]
    wire_session_new: Callable[..., int]
    wire_session_delete: Callable[..., None]
    wire_session_answer: Callable[..., int]
    wire_serve: Callable[..., int]

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


LIBRARY: Final = Library(PATH) if PATH.exists() else None
