"""What all gateways together demand: one stream from each, found by address or by DNS."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from protos import demand_pb2 as pb
from protos import demand_pb2_grpc
from services.autoscaler.policy import ROLES, Role, RoleDemand
from services.runtime.channels import open_channel
from services.runtime.discovery import fixed_addresses, poll_addresses
from services.runtime.errors import MoonshardError, Unavailable
from services.runtime.tls import TlsFiles

EVERY_S = 1.0
SILENT_S = 10.0  # a gateway that says nothing for so long is not heard
RETRY_S = 0.2

log = logging.getLogger(__name__)


class Gateways:
    """Listens to every gateway. `changed` is set whenever one says something, and whenever one falls silent.

    A gateway is listened to while it is listed or speaks: one that drains has streams, and they are demand.
    """

    def __init__(self, places: Sequence[str], discover_s: float, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self.changed = asyncio.Event()
        self._places = places
        self._discover_s = discover_s
        self._listed = fixed_addresses(places)
        self._looked_up = False
        self._said: dict[str, pb.WatchDemandResponse] = {}
        self._listeners: dict[str, asyncio.Task[None]] = {}

    @property
    def demand(self) -> Mapping[Role, RoleDemand] | None:
        """The sum of what they say; None while one that is listed cannot be heard, or none is known."""
        if not self._looked_up or not self._listed or not self._listed <= self._said.keys():
            return None
        return total(self._said.values())

    async def run(self) -> None:
        """Listen until cancelled."""
        try:
            async for listed in poll_addresses(self._places, self._discover_s):
                self._list(listed)
            # All addresses are fixed: there is nothing to look up.
            await asyncio.get_running_loop().create_future()
        finally:
            listeners = [*self._listeners.values()]
            for listener in listeners:
                listener.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)

    def _list(self, listed: frozenset[str]) -> None:
        self._listed, self._looked_up = listed, True
        for address in listed - self._listeners.keys():
            self._listeners[address] = asyncio.create_task(self._listen(address))
        for address in self._listeners.keys() - listed - self._said.keys():
            self._listeners.pop(address).cancel()
        self.changed.set()

    async def _listen(self, address: str) -> None:
        async with open_channel(address, tls=self._tls) as channel:
            while True:
                try:
                    await self._hear(address, demand_pb2_grpc.DemandServiceStub(channel))
                except MoonshardError as error:
                    if self._said.pop(address, None) is not None:
                        log.warning("gateway cannot be heard", extra={"address": address, "reason": str(error)})
                        self.changed.set()
                await asyncio.sleep(RETRY_S)

    async def _hear(self, address: str, stub: "demand_pb2_grpc.DemandServiceAsyncStub") -> None:
        stream = stub.Watch(pb.WatchDemandRequest(every_s=EVERY_S))
        try:
            responses = aiter(stream)
            while True:
                async with asyncio.timeout(SILENT_S):
                    response = await anext(responses)
                if address not in self._said:
                    log.info("gateway heard", extra={"address": address})
                self._said[address] = response
                self.changed.set()
        except TimeoutError:
            raise Unavailable(f"silent for {SILENT_S:g} s") from None
        except StopAsyncIteration:
            raise Unavailable("it ended the stream") from None
        finally:
            stream.cancel()


def total(said: Iterable[pb.WatchDemandResponse]) -> dict[Role, RoleDemand]:
    """Requests are added up; a replica that several gateways see counts once, as full as any of them says."""
    said = list(said)
    return {role: _total_of(role, [of for one in said for of in one.roles if of.role == role]) for role in ROLES}


def _total_of(role: Role, said: Sequence[pb.RoleDemand]) -> RoleDemand:
    used: dict[str, int] = {}
    each = [replica.num_blocks for of in said for replica in of.replicas if replica.num_blocks]
    for replica in (replica for of in said for replica in of.replicas):
        blocks = replica.num_blocks - replica.num_free_blocks
        used[replica.address] = max(used.get(replica.address, 0), blocks)
    num_requests = sum(of.num_requests for of in said)
    return RoleDemand(
        num_requests=num_requests,
        load=sum(of.num_queued_tokens for of in said) if role == "prefill" else num_requests,
        blocks_used=sum(used.values()),
        blocks_each=min(each, default=0),
    )
