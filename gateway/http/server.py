"""The HTTP server: uvicorn, with guarded connections and an end that leaves no stream without a word."""

import asyncio
import resource
import socket
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from gateway.http.connection import ConnectionWall, GuardedConnection
from gateway.http.stopping import Stopping
from gateway.settings import GatewaySettings

KEEP_ALIVE_S = 75
END_S = 5  # for the last words of streams, once the drain is over


class HttpServer(uvicorn.Server):
    """Serves an application until `should_exit`; then open requests have `drain_s`, at whose end they are ended."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, stopping: Stopping) -> None:
        self._stopping = stopping
        self._drain_s = max(settings.drain_s - END_S, settings.drain_s / 2)
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(GuardedConnection, wall=ConnectionWall(settings)),  # type: ignore[arg-type]
                loop="uvloop",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="on",
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, int(settings.drain_s)),
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, let requests end, and end those that are left with an error of their dialect."""
        timer = asyncio.get_running_loop().call_later(self._drain_s, self._stopping.stop)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
