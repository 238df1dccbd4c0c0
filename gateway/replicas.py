"""The replicas of a role: who is ready, how loaded they are, and waiting until there is one."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio

from gateway.metrics import HELD_REQUESTS, SERVING_REPLICAS
from protos.attention_pb2 import GetLoadRequest, GetLoadResponse
from protos.attention_pb2_grpc import AttentionServiceStub
from protos.tokenizer_pb2_grpc import TokenizerServiceStub
from protos.vision_pb2_grpc import VisionServiceStub
from services.runtime.channels import open_channel, watch_health
from services.runtime.errors import MoonshardError, Unavailable

if TYPE_CHECKING:
    from protos.attention_pb2_grpc import AttentionServiceAsyncStub
    from protos.tokenizer_pb2_grpc import TokenizerServiceAsyncStub
    from protos.vision_pb2_grpc import VisionServiceAsyncStub

LOAD_S = 5.0


@dataclass(slots=True, eq=False)
class Replica:
    """One address of a role. Owned by its pool, which alone changes it."""

    address: str
    channel: grpc.aio.Channel
    serving: bool = False
    load: GetLoadResponse = field(default_factory=GetLoadResponse)
    sent: list[tuple[float, int]] = field(default_factory=list)  # (when, tokens) of calls the load doesn't show yet

    @property
    def attention(self) -> "AttentionServiceAsyncStub":
        """The engine's calls."""
        return AttentionServiceStub(self.channel)

    @property
    def tokenizer(self) -> "TokenizerServiceAsyncStub":
        """The tokenizer's calls."""
        return TokenizerServiceStub(self.channel)

    @property
    def vision(self) -> "VisionServiceAsyncStub":
        """The vision service's calls."""
        return VisionServiceStub(self.channel)

    @property
    def sent_tokens(self) -> int:
        """Tokens of the calls that were sent since the last report."""
        return sum(num_tokens for _, num_tokens in self.sent)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait to be computed, what we sent since the last report included."""
        return self.load.num_queued_tokens + self.sent_tokens

    @property
    def free_blocks(self) -> int:
        """Free blocks, less those for what we sent since the last report."""
        block_tokens = max(1, self.load.block_tokens)
        return self.load.num_free_blocks - sum(-(-num_tokens // block_tokens) for _, num_tokens in self.sent)

    @property
    def is_full(self) -> bool:
        """Whether its queue takes no more; a replica without a report counts as empty."""
        return 0 < self.load.max_waiting <= self.load.num_waiting

    def note_sent(self, num_tokens: int) -> None:
        """A call with so many tokens goes there now."""
        self.sent.append((time.monotonic(), num_tokens))

    def report(self, load: GetLoadResponse, asked_s: float) -> None:
        """Takes a report that was asked for at that time; what was sent before is in it."""
        self.load = load
        self.sent = [(when, num_tokens) for when, num_tokens in self.sent if when >= asked_s]


class ReplicaPool:
    """All replicas of one role, each with a watched health and, for engines, a polled load."""

    def __init__(self, role: str, addresses: Sequence[str], *, load_poll_s: float | None) -> None:
        self.role = role
        self.replicas = [Replica(address, open_channel(address)) for address in addresses]
        self._load_poll_s = load_poll_s
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._pollers: list[asyncio.Task[None]] = []
        self._any = asyncio.Event()

    async def open(self) -> None:
        """Starts to watch. Does not wait for anyone to be ready."""
        for replica in self.replicas:
            self._watch(replica)
            if self._load_poll_s is not None:
                self._pollers.append(asyncio.create_task(self._poll(replica, self._load_poll_s)))

    async def close(self) -> None:
        """Stops watching and closes the channels."""
        tasks = [*self._watchers.values(), *self._pollers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self.replicas:
            await replica.channel.close()

    @property
    def serving(self) -> list[Replica]:
        """Those that say they are ready."""
        return [replica for replica in self.replicas if replica.serving]

    async def pick(
        self, policy: Callable[[Sequence[Replica]], Replica], *, avoid: Collection[str] = (), hold_s: float
    ) -> Replica:
        """One that is ready, by the policy; those to avoid only if there are no others.

        Waits up to hold_s for one to be ready, then raises Unavailable.
        """
        await self.wait(hold_s)
        fresh = [replica for replica in self.serving if replica.address not in avoid]
        return policy(fresh or self.serving)

    async def wait(self, hold_s: float) -> None:
        """Returns as soon as any replica is ready; Unavailable after hold_s."""
        if self._any.is_set():
            return
        with HELD_REQUESTS.labels(self.role).track_inprogress():
            try:
                async with asyncio.timeout(hold_s):
                    await self._any.wait()
            except TimeoutError as error:
                raise Unavailable(f"no {self.role} replica is ready", retry_after_s=max(1.0, hold_s / 2)) from error

    def lose(self, replica: Replica) -> None:
        """A call to it broke: it counts as gone until it says again that it is ready."""
        self._set_serving(replica, False)
        self._watchers[replica.address].cancel()
        self._watch(replica)

    def _watch(self, replica: Replica) -> None:
        self._watchers[replica.address] = asyncio.create_task(self._follow(replica))

    async def _follow(self, replica: Replica) -> None:
        async for serving in watch_health(replica.channel):
            self._set_serving(replica, serving)

    async def _poll(self, replica: Replica, every_s: float) -> None:
        while True:
            if replica.serving:
                asked_s = time.monotonic()
                # Its health is watched elsewhere; an old report is better than none.
                with suppress(MoonshardError):
                    replica.report(await replica.attention.GetLoad(GetLoadRequest(), timeout=LOAD_S), asked_s)
            await asyncio.sleep(every_s)

    def _set_serving(self, replica: Replica, serving: bool) -> None:
        replica.serving = serving
        if not serving:
            replica.report(GetLoadResponse(), time.monotonic())
        if self.serving:
            self._any.set()
        else:
            self._any.clear()
        SERVING_REPLICAS.labels(self.role).set(len(self.serving))
