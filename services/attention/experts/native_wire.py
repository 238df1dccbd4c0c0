"""Batches and connections in native code: Python decides who gets a part, and what follows a failure."""

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from torch import Tensor

from kernels.interface import RoutedTokens
from services.attention.experts.waiting import AWAKE_S, Cores, may_wait_awake, own_cores, peer_cores
from services.wire.frames import Buffer, CallName
from services.wire.links import NativeLink
from services.wire.native_client import Event, EventKind, NativeCall, NativeClient

if TYPE_CHECKING:
    from services.attention.experts.in_flight import Call

# A hop of a decode step takes tens of microseconds to milliseconds: sleeping in native code for it costs a tenth of a
# turn of the event loop. Whatever takes longer is awaited in the loop, which must not stand still.
PATIENCE_S: Final = 0.005
# Answers that are there before anybody waits in the loop would keep it from ever turning: discovery, connections and
# timers get a turn this often.
TURN_S: Final = 0.005


@dataclass(frozen=True)
class LinkEvents:
    """What the owner of a link is told of it."""

    answered: Callable[["Call"], None]
    refused: Callable[["Call", str], None]
    dropped: Callable[[], None]
    lost: Callable[[str], None]


class NativeWire:
    """The native client of one engine: its batches by handle, its links by index. All on the engine's loop."""

    def __init__(self, placement: Sequence[Sequence[int]], epoch: int) -> None:
        self.client = NativeClient(placement, epoch)
        self.calls: dict[tuple[int, int], Call] = {}  # by handle and shard
        self._links: dict[int, NativeTransport] = {}
        self._cores: dict[int, Cores | None] = {}  # of the peer at each link
        self.turned_s = time.monotonic()

    def dispatch(self, name: CallName, work: RoutedTokens) -> "NativeBatch":
        """A batch whose parts can be sent; the call id of a part is that of `name` plus its shard."""
        return NativeBatch(self, self.client.dispatch(name, work))

    def open(self, sock: socket.socket, link: NativeLink, told: LinkEvents) -> "NativeTransport":
        """A transport over a connected socket and its link, which it owns from now on."""
        transport = NativeTransport(self, sock, link, told)
        self._links[transport.link] = transport
        self._cores[transport.link] = peer_cores(sock)
        self._choose_waiting()
        return transport

    def forget(self, link: int) -> None:
        """A link is closed."""
        self.client.drop_link(link)
        self._links.pop(link, None)
        self._cores.pop(link, None)
        self._choose_waiting()

    def _choose_waiting(self) -> None:
        self.client.wait_awake(AWAKE_S if may_wait_awake(own_cores(), self._cores.values()) else 0.0)

    def pump(self) -> None:
        """Send and receive what is possible now. Called by the event loop."""
        end_s = time.monotonic() + TURN_S
        while events := self.client.poll():
            self.handle(events)
            if time.monotonic() > end_s:
                # A shard that sends without an end must not keep the loop from turning.
                asyncio.get_running_loop().call_soon(self.pump)
                break
        for transport in list(self._links.values()):
            transport.watch_for_room()

    def lose(self, links: Sequence[int], reason: str) -> None:
        """Break links that cannot go on."""
        for link in links:
            if link in self._links:
                self._links[link].lose(reason)

    def handle(self, events: Sequence[Event]) -> None:
        """Act on what happened."""
        for event in events:
            transport = self._links.get(event.link)
            call = self.calls.get((event.handle, event.shard))
            match event.kind:
                case EventKind.DROPPED if transport:
                    transport.told.dropped()
                case EventKind.ANSWERED if transport and call:
                    transport.told.answered(call)
                case EventKind.REFUSED | EventKind.MISSHAPEN if transport and call:
                    words = f": {event.text}" if event.kind is EventKind.REFUSED else f" {event.text}"
                    transport.told.refused(call, words)
                case EventKind.ENDED if transport:
                    transport.lose("it closed the connection")
                case EventKind.NONSENSE if transport:
                    transport.lose(event.text)


class NativeTransport:
    """One connected socket whose frames native code sends and receives."""

    def __init__(self, wire: NativeWire, sock: socket.socket, link: NativeLink, told: LinkEvents) -> None:
        sock.setblocking(False)
        self.told = told
        self._wire = wire
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._waits_for_room = False
        self.link = wire.client.add_link(link)
        self._loop.add_reader(sock, wire.pump)

    def send(self, call: "Call") -> None:
        """Send a part of a native batch."""
        batch = call.dispatched.batch
        assert isinstance(batch, NativeBatch)
        shard = batch.parts[call.part_index][0]
        self._wire.calls[batch.call.handle, shard] = call
        if self._open and not self._wire.client.send(batch.call, shard, self.link):
            # Not from within `send`: the caller is choosing replicas.
            self._loop.call_soon(self.lose, "sending failed")
        self.watch_for_room()

    def watch_for_room(self) -> None:
        """Have the loop call again when there is room for the rest of a frame."""
        waits = self._open and self._wire.client.polls_for_room(self.link)
        if waits and not self._waits_for_room:
            self._loop.add_writer(self._sock, self._wire.pump)
        elif self._waits_for_room and not waits and self._open:
            self._loop.remove_writer(self._sock)
        self._waits_for_room = waits

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._wire.forget(self.link)
            self._sock.close()

    def lose(self, reason: str) -> None:
        """End the stream and report it."""
        if self._open:
            self.close()
            self.told.lost(reason)


class NativeBatch:
    """A batch in native code."""

    def __init__(self, wire: NativeWire, call: NativeCall) -> None:
        self.call = call
        self.parts = call.parts
        self._wire = wire
        self._open = True

    def frame(self, index: int, name: CallName) -> Sequence[Buffer]:
        return [self._wire.client.frame(self.call, self.parts[index][0])]

    def take(self, index: int, total: Tensor | None) -> None:
        if total is not None:
            self._wire.client.fill(self.call, self.parts[index][0], total)

    def wait(self) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while self._open and (left_s := end_s - time.monotonic()) > 0:
            events = self._wire.client.poll(self.call, left_s)
            if not events:
                return
            self._wire.handle(events)
        # Frames that came together with the last event lie in memory, where the loop does not see them.
        self._wire.pump()

    def gives_way(self) -> bool:
        now_s = time.monotonic()
        is_due = now_s - self._wire.turned_s > TURN_S
        if is_due:
            self._wire.turned_s = now_s
        return is_due

    def result(self) -> Tensor:
        total, broken = self._wire.client.finish(self.call)
        self._end(broken)
        return total

    def close(self) -> None:
        if self._open:
            self._end(self._wire.client.release(self.call))

    def _end(self, broken: Sequence[int]) -> None:
        self._open = False
        for shard, _ in self.parts:
            self._wire.calls.pop((self.call.handle, shard), None)
        self._wire.lose(broken, "a frame was given up when it was sent in part")
