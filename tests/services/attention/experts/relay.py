"""A network between a caller and a replica's TCP wire that a test can cut, hold or corrupt."""

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from tests.services.expert.serving import ServerThread

Change = Callable[[bytes], bytes]


class Relay:
    """Forwards bytes both ways; its port takes the place of the server's own in descriptions.

    change  applied to what the caller and the replica send, chunk by chunk, once it is introduced
    """

    def __init__(self, server: ServerThread, change: Change = lambda data: data) -> None:
        self._place = "127.0.0.1", server.wires[-1].port
        self._change = change
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        server.description.wire_port = self._listener.getsockname()[1]

    def hold(self) -> None:
        """From now on nothing arrives, and nobody notices: as when a cable is pulled."""
        self._flows.clear()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._flows.set()
        self._listener.close()
        for sock in self._sockets:
            _end(sock)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._place)
            except OSError:
                return
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            first = True
            while data := source.recv(1 << 16):
                self._flows.wait()
                target.sendall(data if first else self._change(data))
                first = False  # the introduction, or its answer
        except OSError:
            pass
        for sock in (source, target):
            _end(sock)


def _end(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)  # closing alone would not wake a thread that receives
    sock.close()


def flip_now_and_then(seed: int, every: int) -> Change:
    """Change one bit in one of `every` chunks."""
    draw = random.Random(seed)

    def change(data: bytes) -> bytes:
        if draw.randrange(every):
            return data
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(changed)

    return change
