"""From a parsed request to an HTTP answer, whole or streamed: what all dialects do alike."""

import asyncio
import logging
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
from gateway.request.answer_model import AnswerEvent
from gateway.request.chat_model import Request
from services.runtime.errors import MoonshardError

log = logging.getLogger(__name__)


class StreamWriter(Protocol):
    """Turns the events of one answer into the bytes of one stream."""

    def write(self, events: Sequence[AnswerEvent]) -> bytes:
        """Write these events, in order."""

    def keep_alive(self) -> bytes:
        """Write a sign of life in a silence."""

    def last(self) -> bytes:
        """Write the end of the stream."""

    def fail(self, error: MoonshardError) -> bytes:
        """Write the end of a stream that an error cuts off."""


class Answerer(Protocol):
    """How one dialect shows one answer."""

    def whole(self, events: Sequence[AnswerEvent], active: ActiveRequest) -> Mapping[str, Any]:
        """Return the body of an answer that is not streamed."""

    def writer(self, active: ActiveRequest) -> StreamWriter:
        """Return the writer of a stream."""


async def deliver(request: HttpRequest, asked: Request, answerer: Answerer, *, stream: bool) -> Response:
    """Generate an answer and send it. Everything stops when the client leaves."""
    return await until_gone(_deliver(request, asked, answerer, stream), request.receive)


async def _deliver(request: HttpRequest, asked: Request, answerer: Answerer, stream: bool) -> Response:
    gateway: Gateway = gateway_of(request)
    keep_alive_s = gateway.settings.keep_alive_s
    starting = asyncio.create_task(gateway.pipeline.start(asked, call_context(request)))
    streamed = False
    try:
        if stream and not (await asyncio.wait({starting}, timeout=keep_alive_s))[0]:
            # A role wakes for it: the client gets comments before there is an answer.
            streamed = True
            return EventStream(_waiting(starting, answerer, request.url.path, keep_alive_s), partial(_close, starting))
        active = await starting
        if not stream:
            body = answerer.whole(await _all_events(active), active)
            return Response(orjson.dumps(body), media_type="application/json")
        # Errors that come before the first token, or quickly, still have their own status.
        if await active.events.wait(keep_alive_s):
            active.events.check()
        streamed = True
    finally:
        if not streamed:
            await _close(starting)
    return EventStream(_stream(active, answerer.writer(active), request.url.path, keep_alive_s), active.close)


async def _close(starting: asyncio.Task[ActiveRequest]) -> None:
    """End a request, whether or not it has begun."""
    starting.cancel()
    await asyncio.wait({starting})
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().close()


async def _all_events(active: ActiveRequest) -> list[AnswerEvent]:
    events: list[AnswerEvent] = []
    while batch := await active.events.take():
        events += batch
    return events


async def _stream(
    active: ActiveRequest, writer: StreamWriter, path: str, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    """Return the whole event stream."""
    with OPEN_STREAMS.track_inprogress():
        try:
            while True:
                if not await active.events.wait(keep_alive_s):
                    yield writer.keep_alive()
                elif events := await active.events.take():
                    yield writer.write(events)
                else:
                    break
            yield writer.last()
        except MoonshardError as error:
            yield writer.fail(error)
        except Exception:
            log.exception("a stream broke")
            yield error_events(MoonshardError("the gateway failed"), path)


async def _waiting(
    starting: asyncio.Task[ActiveRequest], answerer: Answerer, path: str, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    """Write comments until the answer begins, then its stream."""
    yield KEEP_ALIVE
    while not (await asyncio.wait({starting}, timeout=keep_alive_s))[0]:
        yield KEEP_ALIVE
    try:
        active = starting.result()
    except MoonshardError as error:
        yield error_events(error, path)
        return
    async with aclosing(_stream(active, answerer.writer(active), path, keep_alive_s)) as pieces:
        async for piece in pieces:
            yield piece
