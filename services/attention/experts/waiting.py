"""Whether to wait for answers awake: only where that takes no core from a process that computes them."""

import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

AWAKE_S: Final = 50e-6  # a sleeper is woken within 5 to 45 us

Cores = frozenset[int]


def own_cores() -> Cores:
    return frozenset(os.sched_getaffinity(0))


def peer_cores(sock: socket.socket) -> Cores | None:
    """The cores that the process at the other end of a Unix socket may use; None: unknown, or on another machine."""
    if sock.family != socket.AF_UNIX:
        return None
    pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    try:
        # In another namespace of processes it has no number here, and 0 would be this process.
        return frozenset(os.sched_getaffinity(pid)) if pid > 0 else None
    except OSError:
        return None


def may_wait_awake(own: Cores, peers: Iterable[Cores | None]) -> bool:
    """Whether all processes are known to have cores of their own: no two share one."""
    taken = set(own)
    for cores in peers:
        if cores is None or not taken.isdisjoint(cores):
            return False
        taken |= cores
    return True
