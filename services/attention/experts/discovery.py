"""Finds expert replicas behind a DNS name and sorts them by the shard that each says it holds."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from protos import expert_pb2, expert_pb2_grpc
from services.attention.experts.connection import CONNECT_S, ReplicaConnection, ShardIdentity
from services.runtime.channels import open_channel
from services.runtime.discovery import poll_addresses
from services.runtime.errors import CheckpointError, MoonshardError
from services.runtime.tls import TlsFiles

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A replica that was found and is used; `drop` ends that."""

    connection: ReplicaConnection
    drop: Callable[[], None]


class ExpertFinder:
    """Keeps the replicas behind a name: each that comes is asked what it holds, each that is gone is dropped.

    One whose shard does not fit this model is named in the log and never used; it is asked again at every look-up,
    since another pod may get its address. All on the loop of the experts' owner.

    add  connects to a replica of that shard at that address
    """

    def __init__(
        self,
        name: str,
        identities: Sequence[ShardIdentity],
        add: Callable[[int, str], Found],
        every_s: float,
        tls: TlsFiles | None = None,
    ) -> None:
        self._name = name
        self._identities = identities
        self._add = add
        self._every_s = every_s
        self._tls = tls
        self._found: dict[str, Found] = {}
        self._refused: dict[str, str] = {}

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        async for listed in poll_addresses([self._name], self._every_s):
            self._drop_gone(listed)
            await asyncio.gather(*(self._ask(address) for address in sorted(listed - self._found.keys())))

    def report(self) -> Iterator[str]:
        """For people: what is known of replicas that are not used."""
        yield f"{self._name} has {len(self._found)} replicas that fit"
        yield from self._refused.values()

    def _drop_gone(self, listed: frozenset[str]) -> None:
        for address, found in list(self._found.items()):
            # A connection that stands is used even if DNS does not list it: it may be the list that is wrong.
            connection = found.connection
            if not connection.live and (address not in listed or connection.refusal is not None):
                del self._found[address]
                found.drop()
                log.info("expert replica dropped", extra={"address": address, "reason": connection.state})
        for address in self._refused.keys() - listed:
            del self._refused[address]

    async def _ask(self, address: str) -> None:
        try:
            async with open_channel(address, tls=self._tls) as channel:
                described = await expert_pb2_grpc.ExpertServiceStub(channel).Describe(
                    expert_pb2.DescribeShardRequest(), timeout=CONNECT_S
                )
            # One of a shard that there is not fits no shard, the first as little as any other.
            shard = min(described.shard, len(self._identities) - 1)
            self._identities[shard].check(address, described)
        except CheckpointError as error:
            if self._refused.get(address) != error.message:
                log.error("%s", error)
            self._refused[address] = error.message
        except MoonshardError as error:
            log.debug("%s does not answer yet: %s", address, error)
        else:
            self._refused.pop(address, None)
            self._found[address] = self._add(shard, address)
