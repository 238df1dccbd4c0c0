"""The roles that open requests need, streamed to the autoscaler: a request that waits for a role wakes it."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import grpc.aio

from protos import demand_pb2 as pb
from protos import demand_pb2_grpc
from services.runtime.errors import Overloaded
from services.runtime.server import start_server
from services.runtime.tls import TlsFiles

EVERY_S = 1.0
LEAST_S = 0.05  # between two reports, so that a burst of requests is one
MAX_WATCHERS = 16
AUTOSCALER_RESTART_S = 60.0


class Prompt(Protocol):
    """A prompt on its way through a prefill replica."""

    @property
    def num_uncomputed(self) -> int:
        """Return its tokens, 0 once it is computed."""


class Replicas(Protocol):
    """A pool of replicas, as far as demand goes."""

    role: str
    num_held: int

    @property
    def is_wanted(self) -> bool:
        """Return whether this cluster has the role at all."""

    def loads(self) -> list[pb.ReplicaDemand]:
        """Return the ready replicas."""


class DemandBook:
    """The needs of all open requests. Owned by the cluster; changed by requests as they come, wait and go."""

    def __init__(self) -> None:
        self._num_requests: Counter[str] = Counter()
        self._prompts: dict[int, Prompt] = {}
        self._next = 0
        self._num_watchers = 0
        self._unwatched_since_s = -math.inf
        self.changed = asyncio.Event()  # set at the next change, and then replaced by a new one

    @property
    def is_watched(self) -> bool:
        """Return whether an autoscaler reads the demand, or did until a moment ago, as while it restarts."""
        return bool(self._num_watchers) or time.monotonic() - self._unwatched_since_s < AUTOSCALER_RESTART_S

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Count an autoscaler as a reader while the block runs. Raises Overloaded beyond MAX_WATCHERS."""
        if self._num_watchers >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} watch the demand already", retry_after_s=EVERY_S)
        self._num_watchers += 1
        try:
            yield
        finally:
            self._num_watchers -= 1
            self._unwatched_since_s = time.monotonic()

    @contextmanager
    def need(self, *roles: str) -> Iterator[None]:
        """Count a request that needs a replica of each of these roles while the block runs."""
        self._num_requests.update(roles)
        self.notify()
        try:
            yield
        finally:
            self._num_requests.subtract(roles)
            self.notify()

    @contextmanager
    def queue(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Count prompts that need a prefill replica until they are computed, or until the block ends."""
        first, self._next = self._next, self._next + len(prompts)
        numbers = range(first, self._next)
        self._prompts.update(zip(numbers, prompts, strict=True))
        self.notify()
        try:
            yield
        finally:
            for number in numbers:
                del self._prompts[number]
            self.notify()

    def report(self, pools: Sequence[Replicas]) -> pb.WatchDemandResponse:
        """Return the demand now."""
        return pb.WatchDemandResponse(roles=[self._role(pool) for pool in pools if pool.is_wanted])

    def notify(self) -> None:
        """Wake the readers: something that the report contains has changed."""
        self.changed.set()
        self.changed = asyncio.Event()

    def _role(self, pool: Replicas) -> pb.RoleDemand:
        queued = [tokens for prompt in self._prompts.values() if (tokens := prompt.num_uncomputed)]
        is_prefill = pool.role == "prefill"
        return pb.RoleDemand(
            role=pool.role,
            # Calls outside of a chat, such as counting tokens, are held without a request that needs the role.
            num_requests=max(pool.num_held, self._num_requests[pool.role] + (len(queued) if is_prefill else 0)),
            num_held=pool.num_held,
            num_queued_tokens=sum(queued) if is_prefill else 0,
            replicas=pool.loads(),
        )


class DemandServicer(demand_pb2_grpc.DemandServiceServicer):
    """Streams the demand to its readers."""

    def __init__(self, book: DemandBook, pools: Sequence[Replicas]) -> None:
        self._book = book
        self._pools = pools

    async def Watch(self, request: pb.WatchDemandRequest, context: Any) -> AsyncIterator[pb.WatchDemandResponse]:
        with self._book.watch():
            while True:
                changed = self._book.changed
                yield self._book.report(self._pools)
                await asyncio.sleep(LEAST_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(request.every_s or EVERY_S):
                        await changed.wait()


async def serve_demand(
    listen: str, book: DemandBook, pools: Sequence[Replicas], tls: TlsFiles | None = None
) -> tuple[grpc.aio.Server, str] | None:
    """Start a server, which the caller stops; return it with its address, or None if there is no address."""
    if not listen:
        return None
    servicer = DemandServicer(book, pools)
    return await start_server(
        lambda server: demand_pb2_grpc.add_DemandServiceServicer_to_server(servicer, server), listen, tls
    )
