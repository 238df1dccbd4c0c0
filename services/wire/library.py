"""The compiled hot wire as Python functions; None where it was not built."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).resolve().parent / "native" / "wire.so"

_P, _I, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_I64, _U32, _U64 = ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64

SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "wire_turn_new": (_P, []),
    "wire_turn_delete": (None, [_P]),
    "wire_session_new": (_P, [_P, _P]),
    "wire_session_delete": (None, [_P]),
    "wire_session_answer": (_SIZE, [_P, _P, _SIZE, _I, ctypes.POINTER(_P)]),
    "wire_serve": (_I, [_P, _P, _P]),
    "wire_link_stream": (_P, [_I]),
    "wire_link_ring": (_P, [_I, _I, _I]),
    "wire_link_sealed": (_P, [_I, ctypes.c_char_p, ctypes.c_char_p]),
    "wire_link_delete": (None, [_P]),
    "wire_link_stop": (None, [_P]),
    "wire_link_receive": (_I, [_P, _I, _P, _P]),
    "wire_link_queue": (None, [_P, ctypes.c_char_p, _SIZE]),
    "wire_link_flush": (_I, [_P]),
    "wire_link_send": (_I, [_P, _P, _SIZE]),
    "wire_cipher_path": (ctypes.c_char_p, []),
    "wire_client_new": (_P, [_I64, _I64, _P, _U64]),
    "wire_client_delete": (None, [_P]),
    "wire_link_add": (_I, [_P, _P]),
    "wire_link_drop": (None, [_P, _I]),
    "wire_dispatch": (_I, [_P, _U64, _U64, _U32, _U32, _P, _I, _U32, _P, _P, _U32, _U32, _P]),
    "wire_send": (_I, [_P, _I, _I, _I]),
    "wire_polls_for_room": (_I, [_P, _I]),
    "wire_wait_awake": (None, [_P, _I64]),
    "wire_poll": (_SIZE, [_P, _I, _I64, _P]),
    "wire_text": (_P, [_P, _P]),
    "wire_part_bytes": (_SIZE, [_P, _I, _I]),
    "wire_part_copy": (None, [_P, _I, _I, _P]),
    "wire_fill": (_I, [_P, _I, _I, _P, _U32, _U32]),
    "wire_finish": (_SIZE, [_P, _I, _P, _P, _SIZE]),
    "wire_release": (_SIZE, [_P, _I, _P, _SIZE]),
}


class Library:
    """Every function releases the interpreter lock."""

    wire_turn_new: Callable[..., int]
    wire_turn_delete: Callable[..., None]
    wire_session_new: Callable[..., int]
    wire_session_delete: Callable[..., None]
    wire_session_answer: Callable[..., int]
    wire_serve: Callable[..., int]
    wire_link_stream: Callable[..., int | None]
    wire_link_ring: Callable[..., int | None]
    wire_link_sealed: Callable[..., int | None]
    wire_link_delete: Callable[..., None]
    wire_link_stop: Callable[..., None]
    wire_link_receive: Callable[..., int]
    wire_link_queue: Callable[..., None]
    wire_link_flush: Callable[..., int]
    wire_link_send: Callable[..., int]
    wire_cipher_path: Callable[..., bytes | None]
    wire_client_new: Callable[..., int]
    wire_client_delete: Callable[..., None]
    wire_link_add: Callable[..., int]
    wire_link_drop: Callable[..., None]
    wire_dispatch: Callable[..., int]
    wire_send: Callable[..., int]
    wire_polls_for_room: Callable[..., int]
    wire_wait_awake: Callable[..., None]
    wire_poll: Callable[..., int]
    wire_text: Callable[..., int]
    wire_part_bytes: Callable[..., int]
    wire_part_copy: Callable[..., None]
    wire_fill: Callable[..., int]
    wire_finish: Callable[..., int]
    wire_release: Callable[..., int]

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)


LIBRARY: Final = Library(PATH) if PATH.exists() else None
