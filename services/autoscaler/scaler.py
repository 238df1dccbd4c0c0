"""The loop: hears the demand, looks at what is there, decides, and has it done."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from services.autoscaler.gateways import Gateways
from services.autoscaler.metrics import DECISIONS, HEARD, REPLICAS
from services.autoscaler.policy import Current, Limits, Memory, Role, Timing, decide
from services.runtime.errors import MoonshardError

log = logging.getLogger(__name__)


class Backend(Protocol):
    """Where replicas run."""

    changed: asyncio.Event  # set whenever `current` may have changed

    @property
    def current(self) -> Mapping[Role, Current]:
        """The roles that are known; empty while this process is not the one that decides."""

    def is_installed(self, minimum: Mapping[Role, int]) -> bool:
        """Whether every role has at least so many ready replicas."""

    async def scale(self, role: Role, replicas: int) -> None:
        """Ask for so many whole replicas. MoonshardError on failure; the next decision tries again."""

    async def run(self) -> None:
        """Keep `current` fresh until cancelled."""


class Scaler:
    """Owns the memory of the policy. `desired` is the last decision, `turned_s` when it was made."""

    def __init__(
        self, gateways: Gateways, backend: Backend, limits: Mapping[Role, Limits], timing: Timing, decide_s: float
    ) -> None:
        self.desired: Mapping[Role, int] = {}
        self.turned_s = time.monotonic()
        self.decided = asyncio.Event()  # set after every decision, and then replaced by a new one
        self._gateways = gateways
        self._backend = backend
        self._limits = limits
        self._timing = timing
        self._decide_s = decide_s
        self._memory: Mapping[Role, Memory] = {}

    async def run(self) -> None:
        """Decide at every change, and every decide_s, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._gateways.run())
            group.create_task(self._backend.run())
            while True:
                await self._turn()
                await _either(self._gateways.changed, self._backend.changed, self._decide_s)

    async def _turn(self) -> None:
        self.turned_s = time.monotonic()
        demand, current = self._gateways.demand, self._backend.current
        HEARD.set(demand is not None)
        if not current:
            # Not ours to decide: what is remembered now would be wrong when it is.
            self._memory = {}
            return
        decision = decide(demand, current, self._limits, self._timing, self.turned_s, self._memory)
        self.desired, self._memory = decision.replicas, decision.memory
        changes = {
            role: number
            for role, number in self.desired.items()
            # While demand is unknown nothing is removed, not even a part of a replica.
            if number != current[role].replicas or (current[role].parts and demand is not None)
        }
        for role, number in self.desired.items():
            REPLICAS.labels(role, "desired").set(number)
            REPLICAS.labels(role, "ready").set(current[role].ready)
        # Together: a path is awake when its slowest role is.
        await asyncio.gather(*(self._scale(role, current[role].replicas, number) for role, number in changes.items()))
        self.decided.set()
        self.decided = asyncio.Event()

    async def _scale(self, role: Role, before: int, number: int) -> None:
        try:
            await self._backend.scale(role, number)
        except MoonshardError as error:
            log.warning("cannot scale", extra={"role": role, "replicas": number, "reason": str(error)})
            DECISIONS.labels(role, "failed").inc()
        else:
            log.info("scaled", extra={"role": role, "before": before, "replicas": number})
            DECISIONS.labels(role, "up" if number > before else "down").inc()


async def _either(first: asyncio.Event, second: asyncio.Event, timeout_s: float) -> None:
    """Return when one of the events is set, which are cleared then, or after the time."""
    waits = [asyncio.ensure_future(first.wait()), asyncio.ensure_future(second.wait())]
    try:
        with suppress(TimeoutError):
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    first.clear()
    second.clear()
