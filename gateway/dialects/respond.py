"""From an internal request to an HTTP answer, whole or streamed: what all dialects do alike."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import orjson
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from gateway.dialects.context import Gateway, call_context, gateway_of
from gateway.http.dialect import error_events
from gateway.http.sse import KEEP_ALIVE, EventStream, until_gone
from gateway.metrics import OPEN_STREAMS
from gateway.request.active_request import ActiveRequest
from gateway.request.chat_model import Event, Request
from services.runtime.errors import MoonshardError


class StreamWriter(Protocol):
    """Turns the events of one run into the bytes of one stream."""

    def write(self, events: Sequence[Event]) -> bytes:
        """These events, in order."""

    def keep_alive(self) -> bytes:
        """What is sent when there is nothing to say."""

    def last(self) -> bytes:
        """What follows the last event."""

    def fail(self, error: MoonshardError) -> bytes:
        """What follows instead if the run breaks."""


class Answerer(Protocol):
    """How one dialect shows one run."""

    def whole(self, events: Sequence[Event], run: ActiveRequest) -> Mapping[str, Any]:
        """The body of an answer that is not streamed."""

    def writer(self, run: ActiveRequest) -> StreamWriter:
        """The writer of an answer that is."""


async def deliver(request: HttpRequest, asked: Request, answerer: Answerer, *, stream: bool) -> Response:
    """Runs what was asked and answers. Everything stops when the client leaves."""
    return await until_gone(_deliver(request, asked, answerer, stream), request.receive)


async def _deliver(request: HttpRequest, asked: Request, answerer: Answerer, stream: bool) -> Response:
    gateway: Gateway = gateway_of(request)
    keep_alive_s = gateway.settings.keep_alive_s
    starting = asyncio.create_task(gateway.pipeline.start(asked, call_context(request)))
    streamed = False
    try:
        if stream and not (await asyncio.wait({starting}, timeout=keep_alive_s))[0]:
            # Held for a role that wakes: the client has to hear something before there is anything to tell.
            streamed = True
            return EventStream(_held(starting, answerer, request.url.path, keep_alive_s), partial(_close, starting))
        run = await starting
        if not stream:
            body = answerer.whole(await _all_events(run), run)
            return Response(orjson.dumps(body), media_type="application/json")
        # Errors that come before the first token, or quickly, still have their own status.
        if await run.events.wait(keep_alive_s):
            run.events.check()
        streamed = True
    finally:
        if not streamed:
            await _close(starting)
    return EventStream(_stream(run, answerer.writer(run), keep_alive_s), run.close)


async def _close(starting: asyncio.Task[ActiveRequest]) -> None:
    """Ends a run, whether or not it has begun."""
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().close()


async def _all_events(run: ActiveRequest) -> list[Event]:
    events: list[Event] = []
    while batch := await run.events.take():
        events += batch
    return events


async def _stream(run: ActiveRequest, writer: StreamWriter, keep_alive_s: float) -> AsyncGenerator[bytes, None]:
    """The whole event stream."""
    with OPEN_STREAMS.track_inprogress():
        try:
            while True:
                if not await run.events.wait(keep_alive_s):
                    yield writer.keep_alive()
                elif events := await run.events.take():
                    yield writer.write(events)
                else:
                    break
            yield writer.last()
        except MoonshardError as error:
            yield writer.fail(error)


async def _held(
    starting: asyncio.Task[ActiveRequest], answerer: Answerer, path: str, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    """Comments until the run begins, then its stream."""
    yield KEEP_ALIVE
    while not (await asyncio.wait({starting}, timeout=keep_alive_s))[0]:
        yield KEEP_ALIVE
    try:
        run = starting.result()
    except MoonshardError as error:
        yield error_events(error, path)
        return
    async with aclosing(_stream(run, answerer.writer(run), keep_alive_s)) as pieces:
        async for piece in pieces:
            yield piece
