"""A service for tests, with calls of all four kinds and raw messages, in the test's process or a separate one."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from services.runtime.errors import Overloaded, Unavailable
from services.runtime.server import run, serve
from services.runtime.settings import ServiceSettings, load

SERVICE = "moonshard.test.Probe"
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Probe:
    """Echoes messages, after a function of the message that the test gives."""

    def __init__(self, act: Callable[[bytes], Any] | None = None) -> None:
        self._act = act
        self.left: asyncio.Queue[str] = asyncio.Queue()  # handlers that have ended, by kind

    async def _answer(self, message: bytes) -> bytes:
        if self._act is not None:
            await self._act(message)
        return message

    async def unary_unary(self, request: bytes, context: Any) -> bytes:
        try:
            return await self._answer(request)
        finally:
            self.left.put_nowait("unary_unary")

    async def unary_stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            while True:
                yield await self._answer(request)
                if request == b"once":
                    return
        finally:
            self.left.put_nowait("unary_stream")

    async def stream_unary(self, requests: Any, context: Any) -> bytes:
        try:
            return b"".join([await self._answer(request) async for request in requests])
        finally:
            self.left.put_nowait("stream_unary")

    async def stream_stream(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield await self._answer(request)
        finally:
            self.left.put_nowait("stream_stream")

    def add_to(self, server: grpc.aio.Server) -> None:
        handlers = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(getattr(self, kind)) for kind in KINDS}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


async def converse(channel: grpc.aio.Channel, kind: str, message: bytes, **options: Any) -> bytes:
    """Send one message by a call of any kind and return the first answer."""
    start = getattr(channel, kind)(f"/{SERVICE}/{kind}")
    if kind.startswith("unary"):
        call = start(message, **options)
    else:
        call = start(**options)
        await call.write(message)
        if kind == "stream_unary":
            await call.done_writing()
    if kind.endswith("unary"):
        return await call
    try:
        answer = await call.read()
    finally:
        call.cancel()
    assert answer is not grpc.aio.EOF
    return answer


class ProbeSettings(ServiceSettings):
    """Settings of the process; see `main`."""

    probe: str = ""


def main() -> None:
    """Run a process that does what messages ask, and fails around the server as its setting says."""
    settings = load(ProbeSettings)
    draining, moody = asyncio.Event(), asyncio.Event()

    async def act(message: bytes) -> None:
        match message:
            case b"die":
                os._exit(9)
            case b"sleep":
                await asyncio.sleep(60)
            case b"until-drain":
                await draining.wait()
            case b"cheer-up":
                moody.set()
            case b"overloaded":
                raise Overloaded("full", retry_after_s=2.5)

    async def fail() -> None:
        raise Unavailable("the weights are gone")

    async def drain() -> None:
        draining.set()
        await asyncio.sleep(60 if settings.probe == "drain-hangs" else 0.3)

    async def moods() -> AsyncIterator[bool]:
        yield False
        await moody.wait()
        yield True
        await draining.wait()
        await asyncio.sleep(0.1)
        yield True  # too late, since it is draining
        await asyncio.sleep(60)

    async def until() -> None:
        await asyncio.sleep(60 if settings.probe != "engine-dies" else 0.2)
        raise KeyError("engine")

    probe = Probe(act)
    ready = {"ready-fails": fail, "ready-hangs": lambda: asyncio.sleep(60)}.get(settings.probe)
    serving = moods() if settings.probe == "moody" else None
    run(
        settings,
        "probe",
        lambda: serve(settings, "probe", probe.add_to, ready=ready, on_drain=drain, until=until, serving=serving),
    )


if __name__ == "__main__":
    main()
