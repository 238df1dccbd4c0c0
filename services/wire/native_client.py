"""The attention side of the hot wire in native code: batches are split, sent, received and summed without Python."""

import ctypes
import enum
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.interface import RoutedTokens
from services.runtime.errors import WireError
from services.wire.frames import CallName
from services.wire.library import LIBRARY
from services.wire.links import NativeLink


class EventKind(enum.IntEnum):
    """What happened on a link; the values of client.cpp."""

    ANSWERED = 1  # the part has its sums
    ENDED = 2  # the other side closed the link, or it broke
    NONSENSE = 3  # the link cannot be trusted
    REFUSED = 4  # the shard complains about the part
    DROPPED = 5  # an answer to no call
    MISSHAPEN = 6  # sums of another shape than the part's


_KINDS = {int(kind): kind for kind in EventKind}


class Event(NamedTuple):
    """handle and shard name the part, where there is one; text is the reason, where words are needed."""

    kind: EventKind
    link: int
    handle: int
    shard: int
    text: str


class _Event(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("kind", "link", "handle", "shard")]


class NativeCall(NamedTuple):
    """One batch in flight. `parts` are (shard, tokens), by rising shard. The tensors stay until it is finished."""

    handle: int
    parts: Sequence[tuple[int, int]]
    work: RoutedTokens


class NativeClient:
    """All links and calls of one engine; used by one thread.

    placement  for each shard its expert ids
    """

    def __init__(self, placement: Sequence[Sequence[int]], epoch: int) -> None:
        assert LIBRARY is not None
        self._library = LIBRARY
        self._num_shards = len(placement)
        shard_of = {expert: shard for shard, ids in enumerate(placement) for expert in ids}
        places = (ctypes.c_int32 * len(shard_of))(*[shard_of[expert] for expert in range(len(shard_of))])
        self._client = LIBRARY.wire_client_new(self._num_shards, len(places), ctypes.addressof(places), epoch)
        weakref.finalize(self, LIBRARY.wire_client_delete, self._client)
        self._part_tokens = (ctypes.c_uint32 * self._num_shards)()
        self._events = ctypes.POINTER(_Event)()
        self._broken = (ctypes.c_int32 * 256)()

    def add_link(self, link: NativeLink) -> int:
        """Take over a link; return its index. WireError if there are too many."""
        native = link.release()
        index: int = self._library.wire_link_add(self._client, native)
        if index < 0:
            self._library.wire_link_delete(native)
            raise WireError("too many connections to expert replicas")
        return index

    def drop_link(self, link: int) -> None:
        self._library.wire_link_drop(self._client, link)

    def dispatch(self, name: CallName, work: RoutedTokens) -> NativeCall:
        """Split a batch; the call id of a part is that of `name` plus its shard. Nothing is sent yet."""
        hidden, ids, weights = (tensor.contiguous() for tensor in work)
        assert ids.dtype == torch.int32 and weights.dtype == torch.float32
        assert hidden.dtype in (torch.float32, torch.bfloat16) and ids.shape == weights.shape
        handle = self._library.wire_dispatch(
            *(self._client, name.call_id, name.step, name.layer, name.micro_batch),
            *(hidden.data_ptr(), hidden.dtype is torch.bfloat16, hidden.shape[1]),
            *(ids.data_ptr(), weights.data_ptr(), *ids.shape, self._part_tokens),
        )
        if handle < 0:
            raise WireError("an expert id is outside the model")
        parts = [(shard, count) for shard, count in enumerate(self._part_tokens) if count]
        return NativeCall(handle, parts, RoutedTokens(hidden, ids, weights))

    def send(self, call: NativeCall, shard: int, link: int) -> bool:
        """Send a part; the rest of one that does not fit into the socket follows in `poll`. False: the link broke."""
        return bool(self._library.wire_send(self._client, call.handle, shard, link))

    def polls_for_room(self, link: int) -> bool:
        """Whether a frame did not fit and its rest can go once the socket is writable."""
        return bool(self._library.wire_polls_for_room(self._client, link))

    def wait_awake(self, budget_s: float) -> None:
        """Have `poll` spin for so long before it sleeps, while answers usually come sooner; 0: sleep at once."""
        self._library.wire_wait_awake(self._client, int(budget_s * 1e9))

    def poll(self, call: NativeCall | None = None, timeout_s: float = 0.0) -> list[Event]:
        """What happened. With a call: sleep until it has all sums, something else happened, or the time is over.

        Without: only what has arrived; to be repeated until nothing is returned.
        """
        handle = -1 if call is None else call.handle
        count = self._library.wire_poll(self._client, handle, int(timeout_s * 1e6), ctypes.byref(self._events))
        found = [self._events[i] for i in range(count)]
        return [Event(_KINDS[e.kind], e.link, e.handle, e.shard, self._text(e.kind)) for e in found]

    def frame(self, call: NativeCall, shard: int) -> bytes:
        """The frame of a part, for a transport that is not a link."""
        frame = bytearray(self._library.wire_part_bytes(self._client, call.handle, shard))
        buffer = (ctypes.c_uint8 * len(frame)).from_buffer(frame)
        self._library.wire_part_copy(self._client, call.handle, shard, ctypes.addressof(buffer))
        return bytes(frame)

    def fill(self, call: NativeCall, shard: int, total: Tensor) -> None:
        """Take the sums [tokens of the part, hidden] f64 of a part that came another way; their shape must be right."""
        total = total.contiguous()
        assert total.dtype == torch.float64
        done = self._library.wire_fill(self._client, call.handle, shard, total.data_ptr(), *total.shape)
        assert done, "sums of another shape, or of a part that has its own"

    def finish(self, call: NativeCall) -> tuple[Tensor, list[int]]:
        """End a call whose parts all have their sums.

        Returns the sum over shards [tokens, hidden] f32, rounded once, and links as `release` does.
        """
        out = torch.empty(call.work.hidden.shape, dtype=torch.float32)
        count = self._library.wire_finish(self._client, call.handle, out.data_ptr(), self._broken, len(self._broken))
        return out, list(self._broken[:count])

    def release(self, call: NativeCall) -> list[int]:
        """End a call without its sum. Returns links that have sent a part of a frame: they must be dropped."""
        count = self._library.wire_release(self._client, call.handle, self._broken, len(self._broken))
        return list(self._broken[:count])

    def _text(self, kind: int) -> str:
        if kind in (EventKind.ANSWERED, EventKind.DROPPED, EventKind.ENDED):
            return ""
        size = ctypes.c_size_t()
        at = self._library.wire_text(self._client, ctypes.byref(size))
        return ctypes.string_at(at, size.value).decode(errors="replace")
