"""What follows a failed call: another replica, a wait, or the error. One policy for all roles."""

import asyncio
import time
from collections.abc import Callable, Sequence

from gateway.cluster.replica import Replica
from gateway.cluster.replicas import ReplicaPool
from gateway.http.request_context import RequestContext, is_loss
from gateway.metrics import HAND_OVERS
from gateway.settings import GatewaySettings
from services.runtime.errors import ExpertsUnavailable, MoonshardError, Overloaded

MAX_LOSSES = 3
ROOM_S = 0.5


class HandOver:
    """The failures of one piece of work since its last progress, and where it may go on. Owned by that work.

    A replica may be lost by bad luck at any time. Work that loses several in a row without progress is probably what
    kills them, and ends. A full queue is an error for a client that has seen nothing yet; once the answer has `begun`
    it is waited out, because an error would break a stream that can still end well. Experts that restart are waited
    for in both cases: they come back, or are counted as gone.
    """

    def __init__(
        self,
        pool: ReplicaPool,
        choose: Callable[[Sequence[Replica]], Replica],
        context: RequestContext,
        settings: GatewaySettings,
        *,
        begun: bool = False,
    ) -> None:
        self.begun = begun
        self.overload: Overloaded | None = None  # the last one, for work that may be left to another role
        self._pool = pool
        self._choose = choose
        self._context = context
        self._settings = settings
        self._num_losses = 0
        self._avoid: set[str] = set()
        self._since_s = time.monotonic()

    def progress(self, *, begun: bool) -> None:
        """Forget the failures: the work has come further."""
        self.begun = begun
        self._num_losses = 0
        self._avoid.clear()
        self._since_s = time.monotonic()

    @property
    def untried(self) -> list[Replica]:
        """Return the ready replicas that have not failed since the last progress."""
        return [replica for replica in self._pool.serving if replica.address not in self._avoid]

    async def next_replica(self) -> Replica:
        """Return a ready replica, if possible one that has not failed.

        Raises Unavailable if there is none in time, Overloaded if all are full.
        """
        while True:
            hold_s = self._context.left_s(self._left_s(self._pool.hold_s))
            try:
                return await self._pool.pick(self._choose, avoid=self._avoid, hold_s=hold_s)
            except Overloaded as error:
                await self._wait(error)

    def note(self, replica: Replica, error: MoonshardError) -> None:
        """Count a failure. Raises the error if no other replica would do better."""
        self._avoid.add(replica.address)
        if isinstance(error, Overloaded):
            self.overload = error
        elif not isinstance(error, ExpertsUnavailable):
            self._num_losses += 1
            if not is_loss(error) or self._num_losses > MAX_LOSSES:
                raise error
            HAND_OVERS.labels(self._pool.role).inc()
            self._pool.lose(replica)

    async def failed(self, replica: Replica, error: MoonshardError) -> None:
        """Count a failure and return when another attempt makes sense. Raises the error if none does."""
        self.note(replica, error)
        if isinstance(error, Overloaded | ExpertsUnavailable) and not self.untried:
            await self._wait(error)

    async def _wait(self, error: MoonshardError) -> None:
        """Wait for room, or for experts; raise the error once that takes too long."""
        patience_s = self._settings.restart_s if isinstance(error, ExpertsUnavailable) else 0.0
        if self._left_s(patience_s) <= 0:
            raise error
        await asyncio.sleep(self._context.left_s(ROOM_S))
        self._avoid.clear()

    def _left_s(self, unbegun_s: float) -> float:
        """Return how long this work may still wait; `unbegun_s` where the client has seen nothing."""
        waited_s = time.monotonic() - self._since_s
        return max(0.0, self._settings.resume_s - waited_s) if self.begun else max(0.0, unbegun_s - waited_s)
