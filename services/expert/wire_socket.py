"""Frames of the hot wire without gRPC: each connection's frames are answered in their order, on its thread."""

import logging
import socket
from collections.abc import Sequence

from services.expert.compute import Compute
from services.expert.metrics import STREAMS
from services.wire.frames import Buffer, num_bytes
from services.wire.introductions import Introductions
from services.wire.links import NativeLink, Result
from services.wire.listener import Place, WireListener
from services.wire.stream import FrameReader, with_length

log = logging.getLogger(__name__)


def wire_socket(place: Place, compute: Compute, introductions: Introductions, *, seals: bool = False) -> WireListener:
    """Return a listener whose connections are answered by this shard."""

    def serve(sock: socket.socket, link: NativeLink | None, carrier: str) -> None:
        with STREAMS.labels(carrier).track_inprogress():
            if link is None:
                _answer_socket(sock, compute)
            elif compute.native is None:
                _answer_link(link, compute)
            elif (end := compute.native.serve(link)) is not Result.ENDED:
                log.info("a stream ended", extra={"reason": end.name.lower()})

    return WireListener(place, serve, introductions, seals=seals)


def _answer_link(link: NativeLink, compute: Compute) -> None:
    while (frame := link.receive()) is not None:
        if not link.send(b"".join(compute.answer(frame))):
            return


def _answer_socket(sock: socket.socket, compute: Compute) -> None:
    frames = FrameReader()
    while num_received := sock.recv_into(frames.space()):
        for frame in frames.advance(num_received):
            _send(sock, with_length(compute.answer(frame)))


def _send(sock: socket.socket, parts: Sequence[Buffer]) -> None:
    num_sent = sock.sendmsg(parts)
    if num_sent < num_bytes(parts):
        # A signal or a full socket cut it short.
        sock.sendall(b"".join(parts)[num_sent:])
