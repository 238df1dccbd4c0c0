"""How often and how long a choice looks for a decode replica that goes on with it."""

import asyncio
import time

from gateway.cluster.choose import choose_decode
from gateway.cluster.replicas import Replica, ReplicaPool
from gateway.http.request_context import RequestContext, is_loss
from gateway.metrics import HAND_OVERS
from gateway.settings import GatewaySettings
from services.runtime.errors import ExpertsUnavailable, MoonshardError, Overloaded

MAX_LOSSES = 3
ROOM_S = 0.5


class DecodeRetry:
    """The failures of one choice since its last token. Owned by its generation.

    A replica may be lost by bad luck at any time. A request that loses several in a row without a new token between
    is probably what kills them, and ends. While the client has seen nothing yet, waiting is short and a full queue is
    an error; afterwards both are waited out.
    """

    def __init__(self, pool: ReplicaPool, settings: GatewaySettings, call: RequestContext) -> None:
        self._pool = pool
        self._settings = settings
        self._call = call
        self._num_losses = 0
        self._avoid: list[str] = []
        self._since_s = time.monotonic()

    def clear(self) -> None:
        """The request has made progress."""
        self._num_losses = 0
        self._avoid.clear()
        self._since_s = time.monotonic()

    async def next_replica(self, *, begun: bool) -> Replica:
        """A ready replica, if possible one that has not failed yet.

        begun  the client has seen a part of the answer
        Raises Unavailable if there is none in time, Overloaded if all are full.
        """
        while True:
            limit_s = self._since_s + self._settings.resume_s - time.monotonic()
            hold_s = self._call.left_s(max(0.0, limit_s) if begun else self._settings.longest_hold_s)
            try:
                return await self._pool.pick(choose_decode, avoid=self._avoid, hold_s=hold_s)
            except Overloaded as error:
                await self._wait_for_room(error, begun=begun)

    async def failed(self, replica: Replica, error: MoonshardError, *, begun: bool) -> None:
        """Notes a failure; returns if another attempt makes sense, else raises the error."""
        if isinstance(error, Overloaded | ExpertsUnavailable):
            self._avoid.append(replica.address)
            if all(other.address in self._avoid for other in self._pool.serving):
                await self._wait_for_room(error, begun=begun)
            return
        self._num_losses += 1
        if not is_loss(error) or self._num_losses > MAX_LOSSES:
            raise error
        HAND_OVERS.labels(self._pool.role).inc()
        self._pool.lose(replica)
        self._avoid.append(replica.address)

    async def _wait_for_room(self, error: MoonshardError, *, begun: bool) -> None:
        if not begun or time.monotonic() - self._since_s > self._settings.resume_s:
            raise error
        await asyncio.sleep(ROOM_S)
        self._avoid.clear()
