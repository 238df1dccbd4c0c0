"""The process that makes recipes: one ask a line on its standard input, one answer a line on its standard output.

Asks are worked on in a fork, which the kernel ends where one takes more computing time or memory than it may have, also
inside of native code. A fork that had little to do is used again: to make one takes longer than an ordinary recipe.

    python -m services.attention.constraint.compile_child SECONDS NICENESS
"""

import json
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import NoReturn

from services.attention.constraint.recipes import Ask, byte_tokenizer, make_recipe
from services.runtime.errors import InvalidRequest

MAX_MEMORY_BYTES = 2 * 1024**3
# A fork that worked longer on one ask, or on so many, may hold much memory that is of no more use.
HARD_S = 0.05
MAX_ASKS = 256


def answer(ask: Ask) -> dict[str, object]:
    """Return a recipe, or what is wrong with the ask."""
    try:
        return {"recipe": make_recipe(ask).dump()}
    except InvalidRequest as error:
        return {"refusal": error.message}
    except (MemoryError, RecursionError):
        return {"refusal": "it is too large to compile"}


class Fork:
    """A copy of this process that answers asks.

    seconds   of computing for each ask; waiting does not count
    niceness  of the work
    is_open   it can be asked again
    """

    def __init__(self, seconds: float, niceness: int) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            _serve(theirs, seconds, niceness)
        theirs.close()
        self._stream = ours.makefile("rw")
        ours.close()
        self._num_asks = 0
        self.is_open = True

    def answer(self, ask: str) -> str:
        """Answer a line with a line: a recipe, a refusal or how the fork ended."""
        self._num_asks += 1
        line = ""
        with suppress(ConnectionError):
            self._stream.write(ask)
            self._stream.flush()
            line = self._stream.readline()
        if not line.endswith("\n"):
            self.is_open = False
            return f"{json.dumps({'end': self._end()})}\n"
        self.is_open = json.loads(line)["computed_s"] < HARD_S and self._num_asks < MAX_ASKS
        if not self.is_open:
            self._end()
        return line

    def _end(self) -> str:
        """End the fork and say how it ended: `time`, or the code with which it died."""
        with suppress(ConnectionError):
            self._stream.close()
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return "time" if code == -signal.SIGPROF else f"{code}"


def _serve(connection: socket.socket, seconds: float, niceness: int) -> NoReturn:
    try:
        os.nice(niceness)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
        with connection.makefile("rw") as stream:
            for line in stream:
                # Its signal ends the process.
                signal.setitimer(signal.ITIMER_PROF, seconds)
                started_s = time.process_time()
                reply = answer(Ask(*json.loads(line)))
                stream.write(f"{json.dumps({**reply, 'computed_s': time.process_time() - started_s})}\n")
                stream.flush()
    finally:
        os._exit(1)


def main() -> None:
    seconds, niceness = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    byte_tokenizer()
    fork: Fork | None = None
    for ask in sys.stdin:
        if fork is None or not fork.is_open:
            fork = Fork(seconds, niceness)
        sys.stdout.write(fork.answer(ask))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
