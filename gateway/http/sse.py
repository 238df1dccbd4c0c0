"""Server-sent events to a client that may stop reading or leave at any moment."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.http.errors import ClientGone

T = TypeVar("T")

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def data_event(payload: bytes) -> bytes:
    """Return one event with a JSON text."""
    return b"data: " + payload + b"\n\n"


def named_event(name: str, payload: bytes) -> bytes:
    """Return one event with a name, for clients that skip events without one."""
    return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"


class EventStream(StreamingResponse):
    """Writes what the generator yields, as it comes, until it ends or the client leaves; then calls close.

    The generator itself yields keep-alives when it has nothing else to say.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream."""
        try:
            await until_gone(self._write(send), receive)
        except ClientGone:
            return  # the error has no reader
        finally:
            await self._events.aclose()
            await self._close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._events:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(work: Awaitable[T], receive: Receive) -> T:
    """Return the result of the work. If the client disconnects first, the work is cancelled and ClientGone raised.

    The request's body must have been read, so that the next message can only be the disconnect.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client left before the answer was complete")
        return await task
    finally:
        for pending in (task, watcher):
            pending.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
