"""The experts for the attention layers: dispatch a batch's tokens, await one weighted sum.

Two implementations: in this process, or on expert shards elsewhere over persistent streams (transports.py).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from kernels.interface import RoutedTokens
from services.attention.experts.batches import Batch, PythonBatch
from services.attention.experts.connection import ReplicaConnection, ShardIdentity
from services.attention.experts.discovery import ExpertFinder, Found
from services.attention.experts.in_flight import Call, Dispatched, ShardCalls
from services.attention.experts.native_wire import NativeWire
from services.attention.experts.split import Splitter
from services.model.device import to_host
from services.model.expert_shard import ExpertShard
from services.runtime.errors import ExpertsUnavailable
from services.runtime.tls import TlsFiles
from services.runtime.tracing import Tracer
from services.wire.connect import TransportName
from services.wire.frames import CallName
from services.wire.library import LIBRARY

log = logging.getLogger(__name__)

CHECK_S: Final = 0.05
POLL_OPEN_S: Final = 0.01
LOG_OPEN_S: Final = 30.0


class Experts(Protocol):
    """The routed experts of every MoE layer. Used on the engine's loop only."""

    async def open(self) -> None:
        """Connect to at least one replica of every shard, before the first dispatch."""

    async def close(self) -> None:
        """End all connections; calls in flight fail."""

    def dispatch(
        self, step: int, layer: int, micro_batch: int, hidden: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Awaitable[Tensor]:
        """Send a micro-batch's tokens to their experts at once; await the sum [tokens, hidden] f32, once.

        The sum is exact until it is rounded, so it depends neither on the shards nor on who has which expert.

        hidden        [tokens, hidden] f32 or bf16; not to be changed before the sum is there
        topk_ids      [tokens, top_k] i32, global expert ids
        topk_weights  [tokens, top_k] f32
        """

    def trace(self, tracer: Tracer | None, parent: str) -> None:
        """Record a span under `parent` for every answer of an expert shard from now on; None: no more."""


class LocalExperts:
    """All experts in this process: computed at once, on the caller's thread."""

    def __init__(self, shard: ExpertShard) -> None:
        self.shard = shard

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def trace(self, tracer: Tracer | None, parent: str) -> None:
        """No-op: there are no expert shards."""

    def dispatch(
        self, step: int, layer: int, micro_batch: int, hidden: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Awaitable[Tensor]:
        if len(hidden) == 0:
            return _Ready(hidden.float())
        return _Ready(self.shard.forward(layer, RoutedTokens(hidden, topk_ids, topk_weights), torch.float32))


@dataclass(frozen=True)
class DispatchLimits:
    """Limits of the time that a call may take.

    deadline_s  from dispatch to ExpertsUnavailable
    repeat_s    after that the frame goes to a further replica too, if the shard has one
    open_s      from `open` to ExpertsUnavailable
    """

    deadline_s: float = 30.0
    repeat_s: float = 10.0
    open_s: float = 600.0


class RemoteExperts:
    """Experts on shards elsewhere: per replica one stream, per dispatch one frame for each shard that has a part.

    addresses   for each shard its replicas
    placement   for each shard its expert ids
    epoch       one life of this process, never used again
    name        "dns:NAME:PORT" of further replicas, of whichever shards; empty: there are none
    discover_s  between two look-ups of the name
    tls         certificates for streams over TCP
    native      sockets are handled by native code, if it was built
    """

    def __init__(
        self,
        addresses: Sequence[Sequence[str]],
        placement: Sequence[Sequence[int]],
        *,
        checkpoint_digest: bytes,
        epoch: int,
        transport: TransportName = "auto",
        limits: DispatchLimits | None = None,
        name: str = "",
        discover_s: float = 2.0,
        tls: TlsFiles | None = None,
        native: bool = True,
    ) -> None:
        if len(addresses) != len(placement):
            raise ValueError(f"{len(addresses)} expert shards have addresses, expected {len(placement)}")
        self._limits = limits or DispatchLimits()
        self._splitter = Splitter(placement)
        self._epoch = epoch
        self._next_call_id = 1
        self._overlapping_step = -1
        self._wire = NativeWire(placement, epoch) if native and LIBRARY is not None and transport != "grpc" else None
        self._transport: TransportName = transport
        self._tls = tls
        self._identities = [
            ShardIdentity(shard, len(placement), tuple(ids), checkpoint_digest) for shard, ids in enumerate(placement)
        ]
        self._shards = [ShardCalls(shard, self._limits.repeat_s) for shard in range(len(placement))]
        self._addresses = addresses
        self._finder = ExpertFinder(name, self._identities, self._found, discover_s, tls) if name else None
        self._tasks: dict[ReplicaConnection | None, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._trace: tuple[Tracer, str] | None = None

    async def open(self) -> None:
        """Return when every shard has a live replica.

        Raises CheckpointError when a replica of `addresses` is of another shard or checkpoint, ExpertsUnavailable after
        `open_s`. One that was found behind a name and is the wrong one is left alone.
        """
        given = [
            self._connect(shard, address) for shard, of_shard in enumerate(self._addresses) for address in of_shard
        ]
        if self._finder is not None:
            self._tasks[None] = asyncio.create_task(self._finder.run())
        deadline_s = time.monotonic() + self._limits.open_s
        log_s = time.monotonic() + LOG_OPEN_S
        while missing := [calls for calls in self._shards if not calls.has_live_replica]:
            for replica in given:
                if replica.refusal is not None:
                    raise replica.refusal
            if time.monotonic() > min(deadline_s, log_s):
                reports = [report for calls in missing if (report := calls.report())]
                report = "; ".join([*reports, *(self._finder.report() if self._finder is not None else ())])
                sentence = f"{len(missing)} of {len(self._shards)} expert shards are missing: {report}"
                if time.monotonic() > deadline_s:
                    raise ExpertsUnavailable(sentence)
                log.info("waiting: %s", sentence)
                log_s += LOG_OPEN_S
            await asyncio.sleep(POLL_OPEN_S)

    async def close(self) -> None:
        """End the streams; calls in flight fail with ExpertsUnavailable."""
        for calls in self._shards:
            calls.close()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        if self._timer is not None:
            self._timer.cancel()

    def dispatch(
        self, step: int, layer: int, micro_batch: int, hidden: Tensor, topk_ids: Tensor, topk_weights: Tensor
    ) -> Awaitable[Tensor]:
        name = CallName(self._epoch, self._next_call_id, step, layer, micro_batch)
        self._next_call_id += len(self._shards)
        if micro_batch:
            self._overlapping_step = step
        batch = self._batch(name, RoutedTokens(*to_host(hidden, topk_ids, topk_weights)))
        overlaps = self._overlapping_step == step
        dispatched = Dispatched(batch, hidden.device, self._trace, overlaps=overlaps)
        deadline_s = time.monotonic() + self._limits.deadline_s
        for index, (shard, num_tokens) in enumerate(batch.parts):
            own = name._replace(call_id=name.call_id + shard)
            call = Call(own, (num_tokens, hidden.shape[1]), dispatched, index, deadline_s)
            self._shards[shard].start(call)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)
        return dispatched

    def _batch(self, name: CallName, work: RoutedTokens) -> Batch:
        if self._wire is not None:
            return self._wire.dispatch(name, work)
        num_tokens, hidden_size = work.hidden.shape
        return PythonBatch(num_tokens, hidden_size, self._splitter.split(work) if num_tokens else [])

    def _connect(self, shard: int, address: str) -> ReplicaConnection:
        calls = self._shards[shard]
        replica = ReplicaConnection(address, self._identities[shard], calls, self._transport, self._tls, self._wire)
        calls.add(replica)
        self._tasks[replica] = asyncio.create_task(replica.run())
        return replica

    def _found(self, shard: int, address: str) -> Found:
        replica = self._connect(shard, address)

        def drop() -> None:
            self._shards[shard].drop(replica)
            self._tasks.pop(replica).cancel()

        return Found(replica, drop)

    def _check(self) -> None:
        now_s = time.monotonic()
        for calls in self._shards:
            calls.check(now_s)
        self._timer = None
        if any(len(calls) for calls in self._shards):
            self._timer = asyncio.get_running_loop().call_later(CHECK_S, self._check)

    def trace(self, tracer: Tracer | None, parent: str) -> None:
        self._trace = (tracer, parent) if tracer is not None else None


class _Ready:
    """An awaitable whose result is there already."""

    def __init__(self, total: Tensor) -> None:
        self._total = total

    def __await__(self) -> Generator[Any, None, Tensor]:
        return self._total
        yield


def parse_experts(text: str) -> list[list[str]]:
    """MOONSHARD_EXPERTS: shards separated by ",", replicas of one shard by "|". ValueError for an empty address."""
    shards = [[address.strip() for address in shard.split("|")] for shard in text.split(",")] if text.strip() else []
    for number, addresses in enumerate(shards):
        if not all(addresses):
            raise ValueError(f"expert shard {number} of {len(shards)} has an empty address")
    return shards
