"""A terminal with a person who types."""

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


class Typist:
    """A terminal in which a `moonshard` command runs. `screen` is the output since the last `type`."""

    def __init__(self, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            # Background processes of a shell ignore Ctrl-C, and their children inherit that.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.chdir(ROOT)
            command = [sys.executable, "-m", "services.local", *arguments]
            os.execve(sys.executable, command, {**os.environ, "TERM": "xterm", **(environ or {})})
        self.screen = ""

    def wait_for(self, text: str, timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.screen:
            assert select.select([self._fd], [], [], max(deadline - time.monotonic(), 0))[0], self.screen
            try:
                self.screen += os.read(self._fd, 4096).decode(errors="replace")
            except OSError:
                raise AssertionError(f"the command has ended:\n{self.screen}") from None

    def type(self, text: str) -> None:
        self.screen = ""
        os.write(self._fd, text.encode())

    def close_window(self) -> None:
        """Close the terminal, which sends SIGHUP to its processes."""
        os.close(self._fd)
        self._fd = -1

    def exit_code(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        if self._fd != -1:
            os.close(self._fd)
        return os.waitstatus_to_exitcode(status)
