"""The HTTP server: uvicorn with guarded connections, and an end in which each open request gets a last word."""

import asyncio
import logging
import resource
import socket
import time
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from gateway.http.connection import ConnectionWall, GuardedConnection
from gateway.http.stopping import Stopping
from gateway.settings import GatewaySettings

KEEP_ALIVE_S = 75
END_S = 5.0  # of the drain, for the last words of streams
LOOK_S = 0.5  # between two looks for a second Ctrl-C, which ends the drain

log = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """Serves an application until `should_exit`; then open requests have `drain_s`, at whose end they are ended."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, stopping: Stopping) -> None:
        self._stopping = stopping
        self._end_s = min(END_S, settings.drain_s / 2)
        self._drain_s = settings.drain_s - self._end_s
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
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, wait for open requests, and end those that are left with an error."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        for connection in tuple(self.server_state.connections):
            connection.shutdown()
        if not await self._ended(self._drain_s):
            self._stopping.stop()
            if not await self._ended(self._end_s):
                log.warning("requests are cut off", extra={"num_requests": len(self.server_state.tasks)})
                for task in self.server_state.tasks:
                    task.cancel()
        if not self.force_exit:
            await self.lifespan.shutdown()

    async def _ended(self, timeout_s: float) -> bool:
        """Return whether all open requests have ended within the time."""
        deadline_s = time.monotonic() + timeout_s
        while self.server_state.tasks and not self.force_exit:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            await asyncio.wait(tuple(self.server_state.tasks), timeout=min(left_s, LOOK_S))
        return True


def raise_file_limit() -> None:
    """Let this process open as many files as the system allows: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
