"""The replicas of a role: their health, and the wait for one that is ready."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from gateway.cluster.demand import DemandBook
from gateway.cluster.replica import Replica
from gateway.metrics import HELD_REQUESTS, SERVING_REPLICAS
from gateway.settings import GatewaySettings
from protos import attention_pb2, tokenizer_pb2, vision_pb2
from protos.attention_pb2 import GetLoadRequest, GetLoadResponse
from protos.demand_pb2 import ReplicaDemand
from services.runtime.channels import open_channel, watch_health
from services.runtime.discovery import fixed_addresses, poll_addresses
from services.runtime.errors import MoonshardError, Overloaded, Unavailable
from services.runtime.tls import tls_files

log = logging.getLogger(__name__)

LOAD_S = 5.0
MAX_RETRY_S = 30.0
RESTART_MARGIN = 2.0  # how much longer than the last one a restart may take

ATTENTION = attention_pb2.DESCRIPTOR.services_by_name["AttentionService"].full_name
TOKENIZER = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"].full_name
VISION = vision_pb2.DESCRIPTOR.services_by_name["VisionService"].full_name


class ReplicaPool:
    """All replicas of one role, each with a watched health and, for engines, a polled load.

    A replica is there while it is listed, by address or by DNS, or while it serves. What is neither any more is
    dropped: it gets no more calls, and its channel closes itself when the last call that holds it has ended.
    """

    def __init__(
        self, role: str, places: Sequence[str], service: str, settings: GatewaySettings, demand: DemandBook
    ) -> None:
        self.role = role
        self.replicas: list[Replica] = []
        self.num_held = 0
        self._demand = demand
        self._places = places
        self._service = service
        self._settings = settings
        self._tls = tls_files(settings)
        self._listed = fixed_addresses(places)
        self._finder: asyncio.Task[None] | None = None
        self._watchers: dict[Replica, asyncio.Task[None]] = {}
        self._pollers: dict[Replica, asyncio.Task[None]] = {}
        self._any = asyncio.Event()
        self.serving_since_s: float | None = None  # None: no replica is ready
        self._gone_s: float | None = None  # when the last ready replica was lost
        self._restart_s = 0.0  # how long the last time without one lasted

    async def open(self) -> None:
        """Start to watch. Does not wait for a replica to be ready."""
        self._list(self._listed)
        self._finder = asyncio.create_task(self._find())

    async def close(self) -> None:
        """Stop watching and close the channels."""
        tasks = [*self._watchers.values(), *self._pollers.values(), *([self._finder] if self._finder else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self.replicas:
            await replica.close()

    @property
    def is_wanted(self) -> bool:
        """Return whether this cluster has the role at all, even if it is at zero just now."""
        return bool(self._places)

    @property
    def serving(self) -> list[Replica]:
        """Return the ready replicas."""
        return [replica for replica in self.replicas if replica.serving]

    @property
    def hold_s(self) -> float:
        """Return how long a request without an answer waits for a first replica.

        That is as long as a restart takes here where a replica was ready before.
        """
        if self._gone_s is None:
            return self._settings.longest_hold_s
        measured_s = min(RESTART_MARGIN * self._restart_s, self._settings.resume_s)
        return max(self._settings.longest_hold_s, self._settings.restart_s, measured_s)

    async def pick(
        self, policy: Callable[[Sequence[Replica]], Replica], *, avoid: Collection[str] = (), hold_s: float
    ) -> Replica:
        """Return a ready replica by the policy; one to avoid only if there is no other.

        Waits up to hold_s for a ready replica, then raises Unavailable.
        """
        await self.wait(hold_s)
        fresh = [replica for replica in self.serving if replica.address not in avoid]
        return policy(fresh or self.serving)

    async def wait(self, hold_s: float) -> None:
        """Return once any replica is ready. Raises Unavailable after hold_s, Overloaded if too many wait already."""
        if self._any.is_set():
            return
        retry_after_s = self._restart_s or min(max(1.0, hold_s / 2), MAX_RETRY_S)
        if self.num_held >= self._settings.max_held:
            raise Overloaded(
                f"{self.num_held} requests wait for a {self.role} replica already", retry_after_s=retry_after_s
            )
        with HELD_REQUESTS.labels(self.role).track_inprogress(), self._held():
            try:
                async with asyncio.timeout(hold_s):
                    await self._any.wait()
            except TimeoutError as error:
                raise Unavailable(f"no {self.role} replica is ready", retry_after_s=retry_after_s) from error

    def loads(self) -> list[ReplicaDemand]:
        """Return the load of each ready replica, for the autoscaler."""
        return [
            ReplicaDemand(
                address=replica.address,
                num_running=replica.load.num_running,
                num_waiting=replica.load.num_waiting,
                num_free_blocks=replica.load.num_free_blocks,
                num_blocks=replica.load.num_blocks,
            )
            for replica in self.serving
        ]

    def lose(self, replica: Replica) -> None:
        """Count a replica as gone, since a call to it broke, until it reports again that it is ready."""
        self._set_serving(replica, False)
        if replica in self._watchers:
            self._watchers[replica].cancel()
            self._watch(replica)

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.num_held += 1
        self._demand.notify()
        try:
            yield
        finally:
            self.num_held -= 1
            self._demand.notify()

    async def _find(self) -> None:
        async for listed in poll_addresses(self._places, self._settings.discover_s):
            try:
                self._list(listed)
            except Unavailable as error:
                log.error("a new replica cannot be called: %s", error)

    def _list(self, listed: frozenset[str]) -> None:
        """Take the addresses that are listed from now on."""
        self._listed = listed
        for address in sorted(listed - {replica.address for replica in self.replicas}):
            self._add(Replica(address, open_channel(address, tls=self._tls)))
        for replica in list(self.replicas):
            self._drop_if_gone(replica)

    def _add(self, replica: Replica) -> None:
        self.replicas.append(replica)
        self._watch(replica)
        if self._service == ATTENTION:
            self._pollers[replica] = asyncio.create_task(self._poll(replica))

    def _drop_if_gone(self, replica: Replica) -> None:
        if replica.serving or replica.address in self._listed or replica not in self.replicas:
            return
        self.replicas.remove(replica)
        replica.retire_streams()
        for tasks in (self._watchers, self._pollers):
            if task := tasks.pop(replica, None):
                task.cancel()

    def _watch(self, replica: Replica) -> None:
        self._watchers[replica] = asyncio.create_task(self._follow(replica))

    async def _follow(self, replica: Replica) -> None:
        # By the name of the service: behind one DNS name there may be further shards, which do not have it.
        async for serving in watch_health(replica.channel, self._service):
            self._set_serving(replica, serving)

    async def _poll(self, replica: Replica) -> None:
        while True:
            if replica.serving:
                asked_s = time.monotonic()
                # Its health is watched elsewhere; an old report is better than none.
                with suppress(MoonshardError):
                    replica.report(await replica.attention.GetLoad(GetLoadRequest(), timeout=LOAD_S), asked_s)
            await asyncio.sleep(self._settings.load_poll_s)

    def _set_serving(self, replica: Replica, serving: bool) -> None:
        before, replica.serving = replica.serving, serving
        if not serving:
            replica.report(GetLoadResponse(), time.monotonic())
        if self.serving:
            if self._gone_s is not None and not self._any.is_set():
                self._restart_s = time.monotonic() - self._gone_s
            if self.serving_since_s is None:
                self.serving_since_s = time.monotonic()
            self._any.set()
        else:
            self._any.clear()
            self.serving_since_s = None
            if before:
                self._gone_s = time.monotonic()
        SERVING_REPLICAS.labels(self.role).set(len(self.serving))
        self._drop_if_gone(replica)
