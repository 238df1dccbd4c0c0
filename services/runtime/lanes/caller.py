"""The caller's end of a stream that carries many calls, a lane each (protos/lanes.proto)."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Generic, TypeVar

from protos.lanes_pb2 import LaneError
from services.runtime.errors import DeadlineExceeded, MoonshardError, Unavailable, WireError, error_of_kind
from services.runtime.lanes.wakeup import Wakeup

log = logging.getLogger(__name__)

C = TypeVar("C")  # a command of a lane; it has the fields `lane` and `cancel`
P = TypeVar("P")  # a part of what comes back; it has the fields `lane` and `error`

# A stream older than this takes no new lanes. So new certificates come into use, and calls spread over replicas that
# were added.
MAX_AGE_S = 600.0
REASON_S = 1.0  # in which the end of a stream that takes nothing any more has to be known


class Lane(Generic[C, P]):
    """One call on a shared stream. Owned by one task, which closes it."""

    def __init__(self, stream: "LaneStream[C, P]", number: int, max_parts: int) -> None:
        self._stream = stream
        self._number = number
        self._max_parts = max_parts
        self._parts: deque[P] = deque()
        self._error: MoonshardError | None = None
        self._is_over = False  # for the peer
        self._wakeup = Wakeup()

    def command(self) -> C:
        """Return a command to be filled at once. It is sent with all that other lanes send in this turn of the loop."""
        return self._stream.command(self._number)

    async def receive(self, silence_s: float) -> list[P]:
        """Return all parts that have come, at least one.

        Raises the error that ended the lane or its stream, after the parts before it; DeadlineExceeded after a silence.
        """
        if not self._parts and self._error is None and not await self._wakeup.wait(silence_s):
            self.fail(DeadlineExceeded(f"nothing came from {self._stream.address} for {silence_s:g} s"))
        if self._parts:
            parts = list(self._parts)
            self._parts.clear()
            return parts
        error = self._error
        assert error is not None
        # All lanes of a stream that breaks share the error, and each raises its own.
        raise type(error)(error.message, field=error.field, retry_after_s=error.retry_after_s) from error

    def close(self, *, is_over: bool) -> None:
        """Forget the lane; unless its call `is_over`, the peer is asked to end it."""
        self._stream.leave(self._number)
        if not (is_over or self._is_over):
            self._stream.cancel(self._number)

    def put(self, part: P) -> None:
        """Take a part that came; a peer that sends more than anybody could read loses the lane."""
        if part.HasField("error"):  # type: ignore[attr-defined]
            self._is_over = True
            self.fail(error_from_lane(part.error))  # type: ignore[attr-defined]
        elif len(self._parts) >= self._max_parts:
            self.fail(WireError(f"{self._stream.address} sent more than {self._max_parts} messages that nobody read"))
        else:
            self._parts.append(_copy_of(part) if self._parts else part)
            self._wakeup.wake()

    def fail(self, error: MoonshardError) -> None:
        """End the lane by an error."""
        self._error = self._error or error
        self._wakeup.wake()


class LaneStream(Generic[C, P]):
    """A stream to one replica. It ends when it breaks, or when it is retired and its last lane has been closed."""

    def __init__(self, call: Any, request: Callable[[], Any], address: str) -> None:
        self.address = address
        self._call = call
        self._request = request
        self._numbers = count(1)
        self._lanes: dict[int, Lane[C, P]] = {}
        self._next = request()
        self._filled = asyncio.Event()
        self._is_over = False
        self._is_retired = False
        loop = asyncio.get_running_loop()
        self._old_s = loop.time() + MAX_AGE_S
        self._tasks = [loop.create_task(self._guard(work())) for work in (self._write, self._read)]

    @property
    def takes_lanes(self) -> bool:
        """Return whether a new lane should begin here."""
        return not (self._is_over or self._is_retired) and asyncio.get_running_loop().time() < self._old_s

    def open(self, max_parts: int) -> Lane[C, P]:
        """Open a lane in which at most `max_parts` may wait to be read."""
        assert not self._is_over
        number = next(self._numbers)
        lane = self._lanes[number] = Lane(self, number, max_parts)
        return lane

    def retire(self) -> None:
        """End the stream when its last lane is closed, at once if there is none."""
        self._is_retired = True
        self._end_if_empty()

    def end(self, error: MoonshardError) -> None:
        """End the stream and all its lanes."""
        if self._is_over:
            return
        self._is_over = True
        for lane in self._lanes.values():
            lane.fail(error)
        self._call.cancel()
        for task in self._tasks:
            task.cancel()

    def command(self, number: int) -> C:
        """Return an empty command in the next message.

        The message stays small: a lane sends its next command only after an answer.
        """
        self._filled.set()
        command: C = self._next.parts.add(lane=number)
        return command

    def cancel(self, number: int) -> None:
        """Ask the peer to end a lane."""
        if not self._is_over:
            self.command(number).cancel.SetInParent()  # type: ignore[attr-defined]

    def leave(self, number: int) -> None:
        """Forget a lane; what still comes for it is dropped."""
        self._lanes.pop(number, None)
        self._end_if_empty()

    def _end_if_empty(self) -> None:
        if self._is_retired and not self._lanes:
            self.end(Unavailable("the stream is closed"))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Do one side's work; however it ends, the stream is over."""
        error: MoonshardError = Unavailable(f"the stream to {self.address} is closed")
        try:
            await work
        except MoonshardError as caught:
            # gRPC calls a stream that breaks under a write an internal error.
            is_broken = type(caught) is MoonshardError
            error = Unavailable(f"{self.address}: {caught.message}") if is_broken else caught
        except Exception:
            log.exception("a stream of lanes broke")
            error = MoonshardError("internal error")
        finally:
            self.end(error)

    async def _write(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            message, self._next = self._next, self._request()
            try:
                await self._call.write(message)
            except MoonshardError as error:
                # What ended the stream is what its reader is about to learn; a failed write does not say it.
                await asyncio.sleep(REASON_S)
                raise Unavailable(f"{self.address} takes no more: {error.message}") from error

    async def _read(self) -> None:
        async for message in self._call:
            for part in message.parts:
                if (lane := self._lanes.get(part.lane)) is not None:
                    lane.put(part)
        raise Unavailable(f"{self.address} ended the stream")


def _copy_of(part: P) -> P:
    """Return a part in memory of its own: the one that came keeps the whole message, with the parts of all lanes."""
    copy: P = type(part)()
    copy.CopyFrom(part)  # type: ignore[attr-defined]
    return copy


def error_from_lane(error: LaneError) -> MoonshardError:
    """Return the error that ended a lane, of its own class."""
    field = error.field if error.HasField("field") else None
    retry_after_s = error.retry_after_s if error.HasField("retry_after_s") else None
    return error_of_kind(error.kind)(error.message, field=field, retry_after_s=retry_after_s)
