"""Discovery of expert replicas behind a DNS name, sorted by the shard in their description."""

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
    """A replica in use; `drop` ends its use."""

    connection: ReplicaConnection
    drop: Callable[[], None]


class ExpertFinder:
    """Keep the replicas behind a name: new ones are asked for their description, absent ones are dropped.

    A replica whose shard does not fit this model is logged and never used; it is asked again at every look-up,
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
        """Look up the name again and again, until cancelled."""
        async for listed in poll_addresses([self._name], self._every_s):
            self._drop_gone(listed)
            await asyncio.gather(*(self._ask(address) for address in sorted(listed - self._found.keys())))

    def report(self) -> Iterator[str]:
        """For people: the replicas that are not used, and why."""
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
            # An unknown shard number fits no identity; any identity refuses it.
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
