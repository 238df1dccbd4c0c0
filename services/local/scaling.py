"""Replicas on demand: reports their states over a Unix socket, and starts and ends them by the autoscaler's orders.

One connection, one JSON object a line. To the autoscaler: {"decode": {"replicas": 1, "ready": 0}, ...}, at first and
after every change. From it: {"role": "decode", "replicas": 0}. The other end is services/autoscaler/local.py.
"""

import asyncio
import json
import logging
from pathlib import Path

from services.local.supervisor import Supervisor

log = logging.getLogger(__name__)

CONTROL = "control"
POLL_S = 0.05


class Scaling:
    """Owns the ordered number of replicas of each role. All methods run on the supervisor's loop.

    Replicas up to that number run, others end in order. At first all are asleep.
    """

    def __init__(self, supervisor: Supervisor, path: Path) -> None:
        self._supervisor = supervisor
        self._path = path
        # role -> replica -> its processes
        self._names: dict[str, dict[int, list[str]]] = {}
        for name, child in supervisor.children.items():
            if child.spec.role:
                replicas = self._names.setdefault(child.spec.role, {})
                replicas.setdefault(child.spec.replica, []).append(name)
        self._asked = dict.fromkeys(self._names, 0)
        self._orders: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen for the autoscaler."""
        self._server = await asyncio.start_unix_server(self._converse, self._path)

    async def close(self) -> None:
        """Take no more orders."""
        if self._server is not None:
            self._server.close()
        for order in [*self._orders]:
            order.cancel()

    def state(self) -> dict[str, dict[str, int]]:
        """Return by role the ordered replicas, and those of them that serve."""
        return {
            role: {"replicas": self._asked[role], "ready": sum(map(self._serves, self._of(role)))}
            for role in self._names
        }

    def order(self, role: str, replicas: int) -> None:
        """Let this many replicas run; the others end in tasks of their own."""
        self._asked[role] = replicas
        for number in self._names[role]:
            order = asyncio.create_task(self._carry_out(role, number))
            self._orders.add(order)
            order.add_done_callback(self._orders.discard)

    async def _carry_out(self, role: str, number: int) -> None:
        # The number of the latest order counts. A replica that is woken while it ends starts again after its end.
        asleep = number >= self._asked[role]
        await self._supervisor.set_asleep(self._names[role][number], asleep=asleep)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reporting = asyncio.create_task(self._report(writer))
        try:
            while line := await reader.readline():
                asked = json.loads(line)
                log.info("ordered", extra=asked)
                self.order(asked["role"], asked["replicas"])
        finally:
            reporting.cancel()
            writer.close()

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        reported = None
        while True:
            if (state := self.state()) != reported:
                reported = state
                writer.write(json.dumps(state).encode() + b"\n")
            await asyncio.sleep(POLL_S)

    def _of(self, role: str) -> list[list[str]]:
        return [names for number, names in self._names[role].items() if number < self._asked[role]]

    def _serves(self, names: list[str]) -> bool:
        return all(self._supervisor.children[name].is_ready for name in names)
