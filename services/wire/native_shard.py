"""The expert side of the hot wire in native code: Python describes a shard, native code answers its frames."""

import ctypes
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from kernels.interface import ExpertWeights
from kernels.native.experts import PackedExperts
from services.wire.frames import Buffer
from services.wire.library import LIBRARY
from services.wire.links import NativeLink, Result

_P, _I64 = ctypes.c_void_p, ctypes.c_int64
MAX_BUCKETS: Final = 17


class Counters(ctypes.Structure):
    """Counted by native code. `frames` by time of computation, not summed up."""

    _fields_ = [
        *((name, _I64) for name in ("tokens", "received_bytes", "sent_bytes", "refused", "compute_ns")),
        ("frames", _I64 * (MAX_BUCKETS + 1)),
    ]


class _Shard(ctypes.Structure):
    _fields_ = [
        *((name, _I64) for name in ("hidden", "width", "num_experts", "num_local")),
        *((name, _I64) for name in ("num_layers", "threads", "num_buckets")),
        *((name, _P) for name in ("local_index", "packed", "token_counts", "bucket_ns", "mlp")),
        ("layers_text", ctypes.c_char_p),
        ("experts_text", ctypes.c_char_p),
        ("counters", _P),
    ]


class NativeShard:
    """Answers frames with the experts of one shard, one computation at a time. Threads may share it.

    layers        packed experts by MoE layer
    local_index   [experts of the model] i32: place of each expert in `layers`, negative: elsewhere
    token_counts  by MoE layer [experts here] i64, tokens applied; native code adds to it
    """

    def __init__(
        self,
        layers: Mapping[int, PackedExperts],
        *,
        hidden_size: int,
        local_index: NDArray[np.int32],
        token_counts: Mapping[int, NDArray[np.int64]],
        threads: int,
        bucket_s: Sequence[float],
        layers_text: str,
        experts_text: str,
    ) -> None:
        assert LIBRARY is not None
        assert len(bucket_s) <= MAX_BUCKETS
        some, num_layers = next(iter(layers.values())), max(layers) + 1
        self.counters = Counters()
        index = np.ascontiguousarray(local_index, dtype=np.int32)
        packed = (_P * num_layers)(*[_address(layers[i].addresses) if i in layers else None for i in range(num_layers)])
        counts = (_P * num_layers)(*[token_counts[i].ctypes.data if i in layers else None for i in range(num_layers)])
        buckets = (_I64 * len(bucket_s))(*[int(bound * 1e9) for bound in bucket_s])
        self._shard = _Shard(
            *(hidden_size, some.width, len(index), some.num_experts, num_layers, threads, len(bucket_s)),
            *(index.ctypes.data, _address(packed), _address(counts), _address(buckets), some.mlp_address),
            *(layers_text.encode(), experts_text.encode(), ctypes.addressof(self.counters)),
        )
        self._kept = layers, index, packed, counts, token_counts, buckets
        self._lock = threading.Lock()  # a session answers one frame at a time
        self._turn = LIBRARY.wire_turn_new()
        self._session = LIBRARY.wire_session_new(ctypes.byref(self._shard), self._turn)
        self._inline = LIBRARY.wire_session_new(ctypes.byref(self._shard), self._turn)
        # Not at exit: a thread may still be in native code then.
        weakref.finalize(self, _delete, self._turn, self._session, self._inline).atexit = False

    def answer(self, frame: Buffer) -> bytes:
        """The answer to one frame. Blocks while the shard computes."""
        with self._lock:
            found = self._answer(self._session, frame, wait=True)
        if found is None:
            raise MemoryError("no memory for the answer to a frame")
        return found

    def answer_now(self, frame: Buffer) -> bytes | None:
        """The answer to one frame, or None if the shard is computing another frame, or memory is short."""
        return self._answer(self._inline, frame, wait=False)

    def serve(self, link: NativeLink) -> Result:
        """Answer every frame of a link over a blocking socket in order, until its end."""
        assert LIBRARY is not None
        return Result(LIBRARY.wire_serve(ctypes.byref(self._shard), self._turn, link.address))

    def _answer(self, session: int, frame: Buffer, *, wait: bool) -> bytes | None:
        assert LIBRARY is not None
        out = _P()
        content = bytes(frame)
        size = LIBRARY.wire_session_answer(session, content, len(content), wait, ctypes.byref(out))
        return ctypes.string_at(out, size) if size and out.value else None


def is_native(layers: Mapping[int, ExpertWeights]) -> TypeGuard[Mapping[int, PackedExperts]]:
    """Whether native code can apply these experts: it is built, and they are packed for compiled CPU kernels."""
    return LIBRARY is not None and bool(layers) and all(isinstance(w, PackedExperts) for w in layers.values())


def _delete(turn: int, *sessions: int) -> None:
    assert LIBRARY is not None
    for session in sessions:
        LIBRARY.wire_session_delete(session)
    LIBRARY.wire_turn_delete(turn)


def _address(array: Any) -> int:
    return ctypes.addressof(array)
