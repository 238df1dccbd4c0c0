"""The generations in the lanes of one stream, and the way of their tokens from the engine's thread."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc

from protos import attention_pb2 as pb
from services.attention.engine.engine import Engine
from services.attention.engine.generation import Event, Failed, FinishReason, Generation, Milestones, Tokens
from services.attention.engine.spans import record_phases
from services.attention.sampling.on_host import SampledToken
from services.runtime.errors import DeadlineExceeded, InvalidRequest
from services.runtime.lanes.records import LaneRecord, LaneRecords
from services.runtime.lanes.server import LaneServer
from services.runtime.tracing import Tracer

FINISH = {None: pb.FINISH_REASON_UNSPECIFIED, FinishReason.STOP: pb.STOP, FinishReason.LENGTH: pb.LENGTH}


@dataclass(frozen=True)
class Begun:
    """A generation that can be submitted. `left_out`: what of its schemas is not enforced."""

    generation: Generation
    left_out: Sequence[str]


class Begin(Protocol):
    """Makes the generation that a request asks for."""

    def __call__(
        self, start: pb.GenerationStart, *, request_id: str, trace_parent: str, sink: Callable[[Event], None]
    ) -> Awaitable[Begun]:
        """Return the generation; raise what is wrong with the request."""


@contextmanager
def running(engine: Engine, generation: Generation, tracer: Tracer | None) -> Iterator[None]:
    """Let the engine work on a generation during the block."""
    engine.submit(generation)
    try:
        yield
    finally:
        engine.cancel(generation)
        if tracer is not None:
            record_phases(tracer, generation)


class StepCollector:
    """Brings the events of a step from the engine's thread to the event loop of the service, all in one turn of it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: list[tuple[Callable[[Event], None], Event]] = []

    def sink(self, take: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a sink for the engine's thread; `take` is called on the event loop."""

        def put(event: Event) -> None:
            if not self._events:
                # A step emits all its events in one turn of the engine's own loop; the next turn sends them.
                asyncio.get_running_loop().call_soon(self._send)
            self._events.append((take, event))

        return put

    def _send(self) -> None:
        events, self._events = self._events, []
        self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[tuple[Callable[[Event], None], Event]]) -> None:
        for take, event in events:
            take(event)


class GenerationLane:
    """One generation of a stream, from its start to its last token, an error or the end of its caller."""

    def __init__(
        self,
        lane: int,
        server: LaneServer[pb.GenerationCommand, pb.GenerationTokens],
        engine: Engine,
        tracer: Tracer | None,
        begin: Begin,
        steps: StepCollector,
        records: LaneRecords,
    ) -> None:
        self._lane = lane
        self._server = server
        self._engine = engine
        self._tracer = tracer
        self._begin = begin
        self._steps = steps
        self._records = records
        self._left_out: Sequence[str] = ()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    def take(self, command: pb.GenerationCommand) -> None:
        """Start the generation."""
        if self._task is None and command.HasField("start"):
            self._task = asyncio.create_task(self._run(command.start))
            return
        self._server.fail(self._lane, InvalidRequest("a lane is one start, and perhaps a cancel", field="event"))
        self.close()

    def close(self) -> None:
        """Cancel the generation."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self, start: pb.GenerationStart) -> None:
        record = self._records.begin(start.call)
        try:
            async with asyncio.timeout(start.call.timeout_s or None):
                await self._generate(start, record)
        except asyncio.CancelledError:
            record.end(grpc.StatusCode.CANCELLED)
            raise
        except TimeoutError:
            self._server.fail(self._lane, record.fail(DeadlineExceeded("the deadline of the request has passed")))
        except Exception as error:  # noqa: BLE001
            self._server.fail(self._lane, record.fail(error))
        else:
            record.end(grpc.StatusCode.OK)

    async def _generate(self, start: pb.GenerationStart, record: LaneRecord) -> None:
        begun = await self._begin(
            start,
            request_id=start.call.request_id,
            trace_parent=record.trace_parent,
            sink=self._steps.sink(self._take_event),
        )
        self._left_out = begun.left_out
        with running(self._engine, begun.generation, self._tracer):
            await self._over

    def _take_event(self, event: Event) -> None:
        if self._over.done():
            return
        if isinstance(event, Failed):
            self._over.set_exception(event.error)
            return
        assert isinstance(event, Tokens)
        is_last = event.finish_reason is not None
        self._server.send(self._part(event), is_last=is_last)
        if is_last:
            self._over.set_result(None)

    def _part(self, event: Tokens) -> pb.GenerationTokens:
        part = pb.GenerationTokens(
            lane=self._lane,
            token_ids=[choice.token_id for choice in event.choices],
            finish_reason=FINISH[event.finish_reason],
            num_cached_tokens=event.num_cached,
            logprobs=[logprobs for choice in event.choices if (logprobs := logprobs_of(choice))],
            cut=any(choice.is_cut for choice in event.choices),
        )
        if event.milestones is not None:
            part.times.CopyFrom(times_of(event.milestones))
            part.schema_left_out.extend(self._left_out)
            part.prompt_logprobs.extend(scored for score in event.prompt_scores if (scored := logprobs_of(score)))
        return part


def times_of(at: Milestones) -> pb.FirstTokenTimes:
    """Return how long a generation took to its first token, in parts."""
    return pb.FirstTokenTimes(
        queue_s=at.admitted_s - at.arrived_s,
        fetch_s=at.started_s - at.admitted_s,
        compute_s=at.first_token_s - at.started_s,
        publish_s=max(0.0, at.published_s - at.first_token_s),
    )


def logprobs_of(choice: SampledToken) -> pb.TokenLogprobs | None:
    """Return the log-probabilities of a token, if they were asked for."""
    if choice.logprob is None:
        return None
    return pb.TokenLogprobs(
        logprob=choice.logprob,
        top_token_ids=[token_id for token_id, _ in choice.top_logprobs],
        top_logprobs=[logprob for _, logprob in choice.top_logprobs],
    )
