"""Replicas as processes of one machine: the supervisor that starts them says what is there and takes orders.

One connection over a Unix socket, one JSON object a line. From the supervisor: {"decode": {"replicas": 1, "ready": 0},
...}, at first and after every change. To it: {"role": "decode", "replicas": 0}.
"""

import asyncio
import json
import logging
from collections.abc import Mapping

from services.autoscaler.policy import Current, Role
from services.runtime.errors import Unavailable

log = logging.getLogger(__name__)

RETRY_S = 0.2


class LocalBackend:
    """A Backend whose orders `moonshard up` carries out."""

    def __init__(self, control: str) -> None:
        self.changed = asyncio.Event()
        self._control = control
        self._current: Mapping[Role, Current] = {}
        self._writer: asyncio.StreamWriter | None = None

    @property
    def current(self) -> Mapping[Role, Current]:
        """As the supervisor said last."""
        return self._current

    def is_installed(self, minimum: Mapping[Role, int]) -> bool:
        """The supervisor watches the processes, and starts without any."""
        return True

    async def scale(self, role: Role, replicas: int) -> None:
        """Order so many replicas; the supervisor answers with its next state."""
        if self._writer is None:
            raise Unavailable(f"the supervisor does not answer on {self._control}")
        self._writer.write(json.dumps({"role": role, "replicas": replicas}).encode() + b"\n")

    async def run(self) -> None:
        """Keep connected, until cancelled."""
        while True:
            try:
                await self._converse()
            except (OSError, ValueError) as error:
                log.warning("supervisor: %s", error)
            self._writer, self._current = None, {}
            await asyncio.sleep(RETRY_S)

    async def _converse(self) -> None:
        reader, writer = await asyncio.open_unix_connection(self._control)
        self._writer = writer
        try:
            while line := await reader.readline():
                self._current = {role: Current(**of) for role, of in json.loads(line).items()}
                self.changed.set()
        finally:
            writer.close()
