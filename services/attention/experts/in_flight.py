"""Calls in flight to the experts: their replicas, repeats and deadlines. Never a partial sum.

Experts are idempotent, so a frame may go to several replicas of its shard. Answers after the first are dropped.
"""

import asyncio
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from services.attention.experts.answer_span import record_answer
from services.attention.experts.batches import Batch
from services.attention.experts.metrics import (
    DISPATCH_SECONDS,
    DROPPED_ANSWERS,
    REPEATED_CALLS,
    ROUND_TRIP_SECONDS,
    WAIT_SECONDS,
)
from services.model.device import to_device
from services.runtime.errors import ExpertsUnavailable, MoonshardError, WireError
from services.runtime.tracing import Tracer
from services.wire.frames import Buffer, CallName, Refusal, decode_answer

MAX_CALLS: Final = 1024  # in flight to one shard; an engine has one for each micro-batch


class Dispatched:
    """The result of one `dispatch`: await it, once, for the sum over shards [tokens, hidden] f32.

    Raises ExpertsUnavailable when a shard did not answer in time, WireError when one refused its frame.

    overlaps  another micro-batch has something to compute and to send while this one waits
    """

    def __init__(
        self,
        batch: Batch,
        device: torch.device,
        trace: tuple[Tracer, str] | None = None,
        *,
        overlaps: bool = False,
    ) -> None:
        self.batch = batch
        self.trace = trace
        self._device = device
        self._overlaps = overlaps
        self._num_missing = len(batch.parts)
        self.started_s = self._completed_s = time.monotonic()
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not batch.parts:
            self._complete.set_result(None)

    @property
    def done(self) -> bool:
        """Whether no partial sum is needed any more: complete, failed, or cancelled by the caller."""
        return self._complete.done()

    def settle(self, index: int, partial: Tensor | None) -> None:
        """Take the sum of part `index`; None: the batch has it."""
        if not self.done:
            self.batch.take(index, partial)
            self._num_missing -= 1
            if self._num_missing == 0:
                self._complete.set_result(None)
                self._completed_s = time.monotonic()
                DISPATCH_SECONDS.observe(self._completed_s - self.started_s)

    def fail(self, error: MoonshardError) -> None:
        """End the wait with an error."""
        if not self.done:
            self._complete.set_exception(error)
            # Marks it as retrieved: a caller that failed elsewhere never awaits it.
            self._complete.exception()
            self.batch.close()

    def __await__(self) -> Generator[Any, None, Tensor]:
        awaited_s = time.monotonic()
        try:
            if self._overlaps and not self.done:
                yield  # one turn of the loop, in which the other micro-batch computes and sends
            if not self.done:
                self.batch.wait()
            if self.batch.gives_way():
                yield
            yield from self._complete.__await__()
            # Until the last sum came, not until the loop came back: the other micro-batch may have been computing.
            WAIT_SECONDS.observe(max(0.0, self._completed_s - awaited_s))
            return to_device(self.batch.result(), self._device)
        finally:
            self._complete.cancel()  # no-op but for a caller that gave up while it gave the loop its turn
            self.batch.close()


class ExpertReplica(Protocol):
    """One replica of an expert shard: the interface for its calls."""

    address: str
    state: str  # for people: "connected", or why it is not
    suspect: bool  # let a call wait too long and has not answered since
    in_flight: dict[int, "Call"]

    @property
    def live(self) -> bool:
        """Whether frames can be sent."""

    def send(self, call: "Call") -> None:
        """Hand a call's frame to the open stream."""

    def disconnect(self, reason: str) -> None:
        """Break a stream that cannot be trusted."""


@dataclass(eq=False)
class Call:
    """One frame that awaits its answer. `holders` are the replicas whose open stream took it."""

    name: CallName
    shape: tuple[int, int]
    dispatched: Dispatched
    part_index: int
    deadline_s: float
    sent_s: float = 0.0
    holders: list[ExpertReplica] = field(default_factory=list)
    overdue: bool = False

    def frame(self) -> Sequence[Buffer]:
        """The request frame, in parts."""
        return self.dispatched.batch.frame(self.part_index, self.name)


def choose_replica(replicas: Sequence[ExpertReplica], holders: Sequence[ExpertReplica], turn: int) -> int | None:
    """Index of the live replica with the fewest calls that does not hold this one; equals take turns.

    A suspect is chosen only when there is no other.
    """
    candidates = [i for i, replica in enumerate(replicas) if replica.live and replica not in holders]
    if not candidates:
        return None
    return min(candidates, key=lambda i: (replicas[i].suspect, len(replicas[i].in_flight), (i - turn) % len(replicas)))


class ShardCalls:
    """The calls in flight to one expert shard, by call id, and the replicas that can answer them.

    A replica reports `on_up`, `on_lost` and `on_frame` from when it is added until it is dropped.
    """

    def __init__(self, shard: int, repeat_s: float) -> None:
        self._shard = shard
        self.replicas: list[ExpertReplica] = []
        self._repeat_s = repeat_s
        self._calls: dict[int, Call] = {}
        self._turn = 0
        self._round_trips = ROUND_TRIP_SECONDS.labels(shard)

    def __len__(self) -> int:
        return len(self._calls)

    def start(self, call: Call) -> None:
        """Send a new call, or keep it until a replica is there."""
        if len(self._calls) >= MAX_CALLS:
            call.dispatched.fail(
                ExpertsUnavailable(f"expert shard {self._shard} owes {MAX_CALLS} answers: {self.report()}")
            )
            return
        self._calls[call.name.call_id] = call
        self._send(call)

    @property
    def has_live_replica(self) -> bool:
        return any(replica.live for replica in self.replicas)

    def add(self, replica: ExpertReplica) -> None:
        """From now on the replica gets calls while it is live."""
        self.replicas.append(replica)

    def drop(self, replica: ExpertReplica) -> None:
        """Send no further call to the replica, and the ones that only it has to another one."""
        self.replicas.remove(replica)
        self.on_lost(replica)

    def on_up(self) -> None:
        """A replica has connected: send it the calls that no replica has."""
        for call in list(self._calls.values()):
            if not call.holders:
                self._send(call)

    def on_lost(self, replica: ExpertReplica) -> None:
        """The stream of a replica broke: send its calls to another one."""
        orphans = list(replica.in_flight.values())
        replica.in_flight.clear()
        for call in orphans:
            call.holders.remove(replica)
            if call.dispatched.done:
                self._forget(call)
            elif not call.holders:
                REPEATED_CALLS.labels("lost").inc()
                self._send(call)

    def on_frame(self, replica: ExpertReplica, frame: Buffer) -> None:
        """Take an answer. One that makes no sense breaks the stream, one for no call is counted and dropped."""
        try:
            answer = decode_answer(frame)
        except WireError as error:
            replica.disconnect(str(error))
            return
        call = self._calls.get(answer.name.call_id)
        if call is None or call.name != answer.name:
            if isinstance(answer, Refusal) and answer.name.call_id == 0:
                # The replica could not read the name of the frame, so the call is unknown.
                replica.disconnect(answer.message)
                return
            self.on_dropped(replica)
            return
        if isinstance(answer, Refusal):
            self.on_refusal(replica, call, f": {answer.message}")
        elif tuple(answer.total.shape) != call.shape:
            found, expected = list(answer.total.shape), list(call.shape)
            self.on_refusal(replica, call, f" sent {found}, expected {expected}")
        else:
            self.on_answer(replica, call, answer.total)

    def on_answer(self, replica: ExpertReplica, call: Call, total: Tensor | None = None) -> None:
        """Take the sum of a call; None: native code has it."""
        replica.suspect = False
        self._forget(call)
        began_s, ended_s = call.dispatched.started_s, time.monotonic()
        self._round_trips.observe(ended_s - began_s)
        if call.dispatched.trace is not None:
            record_answer(call.name, self._shard, call.shape[0], *call.dispatched.trace, began_s, ended_s)
        call.dispatched.settle(call.part_index, total)

    def on_refusal(self, replica: ExpertReplica, call: Call, complaint: str) -> None:
        """Fail a call that a replica refused, or answered with another shape."""
        replica.suspect = False
        self._forget(call)
        call.dispatched.fail(WireError(f"expert shard {self._shard} at {replica.address}{complaint}"))

    def on_dropped(self, replica: ExpertReplica) -> None:
        """Count an answer to no call. One that came too late shows that the replica is alive."""
        replica.suspect = False
        DROPPED_ANSWERS.inc()

    def check(self, now_s: float) -> None:
        """Repeat late calls and fail those past their deadline. Called a few times a second."""
        for call in list(self._calls.values()):
            if call.dispatched.done:
                self._forget(call)
            elif now_s > call.deadline_s:
                # The loop may have stood still while the answer arrived, so it gets one more round to read it.
                if call.overdue:
                    self._forget(call)
                    call.dispatched.fail(self._too_late(call))
                call.overdue = True
            elif call.holders and now_s - call.sent_s > self._repeat_s:
                for replica in call.holders:
                    replica.suspect = True
                if self._send(call):
                    REPEATED_CALLS.labels("late").inc()

    def close(self) -> None:
        """Fail all calls in flight."""
        for call in list(self._calls.values()):
            self._forget(call)
            call.dispatched.fail(ExpertsUnavailable("this process is shutting down"))

    def _send(self, call: Call) -> bool:
        if call.dispatched.done:
            self._forget(call)
            return False
        index = choose_replica(self.replicas, call.holders, self._turn)
        call.sent_s = time.monotonic()
        if index is None:
            return False
        self._turn = index + 1
        replica = self.replicas[index]
        replica.in_flight[call.name.call_id] = call
        call.holders.append(replica)
        replica.send(call)
        return True

    def _forget(self, call: Call) -> None:
        self._calls.pop(call.name.call_id, None)
        for replica in call.holders:
            replica.in_flight.pop(call.name.call_id, None)

    def _too_late(self, call: Call) -> ExpertsUnavailable:
        return ExpertsUnavailable(
            f"expert shard {self._shard} did not answer layer {call.name.layer} in time: {self.report()}",
            retry_after_s=1.0,
        )

    def report(self) -> str:
        """For people: the state of every replica."""
        return "; ".join(f"{replica.address} {replica.state}" for replica in self.replicas)
