"""The least that a round trip can cost here: two processes, blocking Unix sockets, no protocol, nothing computed."""

import socket
import subprocess
import sys
import time

ECHO = """
import socket, sys
peer, num_in, num_out = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
space, answer = memoryview(bytearray(num_in)), bytes(num_out)
while True:
    num = 0
    while num < num_in:
        received = peer.recv_into(space[num:])
        if not received:
            sys.exit()
        num += received
    peer.sendall(answer)
"""


def round_trips(num_sent: int, num_received: int, count: int) -> list[float]:
    """Seconds of each of `count` round trips with so many bytes there and back, sorted."""
    mine, other = socket.socketpair(socket.AF_UNIX)
    seconds = []
    with mine, other:
        command = [sys.executable, "-c", ECHO, str(other.fileno()), str(num_sent), str(num_received)]
        with subprocess.Popen(command, pass_fds=[other.fileno()]) as process:
            other.close()
            message, space = bytes(num_sent), memoryview(bytearray(num_received))
            for _ in range(count):
                started = time.perf_counter()
                mine.sendall(message)
                num = 0
                while num < num_received:
                    num += mine.recv_into(space[num:])
                seconds.append(time.perf_counter() - started)
            mine.close()
            process.wait()
    return sorted(seconds[len(seconds) // 10 :])
