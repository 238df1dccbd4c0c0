"""The output of `moonshard up`: a line for every step, and warnings from the processes' logs."""

import time
import unicodedata
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.status import Status
from rich.text import Text

from services.local.child import ProcessFailed
from services.local.cluster_log import LogRecord
from services.local.loading import loading_of

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
# Embeddings, overrides and isolates of the bidirectional algorithm.
TURNS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def printable(text: str) -> str:
    """Remove control characters, which could move the cursor, change colours or ring; keep line ends and tabs.

    Text of a model or a client must not control the terminal, nor change the writing direction of other text.
    """
    return "".join(char if _is_harmless(char) else "\N{REPLACEMENT CHARACTER}" for char in text.replace("\r", ""))


def _is_harmless(char: str) -> bool:
    return char in "\n\t" or (unicodedata.category(char) not in {"Cc", "Cs"} and char not in TURNS)


class Terminal:
    """A Reporter for users. In a terminal it also shows which processes are not ready yet; in a pipe only lines."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._min_level = LEVELS["INFO" if verbose else "WARNING"]
        self._waiting: dict[str, str] = {}  # by name: how far it is
        self._status: Status | None = None
        self._is_gone = False

    def begin(self, processes: list[str]) -> None:
        """Show the progress of these processes until `end`."""
        self._waiting = dict.fromkeys(processes, "")
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._write(self._status.start)
            self._update()

    def end(self) -> None:
        status, self._status = self._status, None
        if status is not None:
            self._write(status.stop)

    def say(self, text: str | Text) -> None:
        self._write(lambda: self._console.print(text, highlight=False, markup=False, soft_wrap=True))

    def _write(self, work: Callable[[], None]) -> None:
        """Call a function with the console, or do nothing after the output was closed (a closed terminal, `| head`).

        It never raises, because the cluster must be stopped in order in this case too.
        """
        if not self._is_gone:
            try:
                work()
            except OSError:
                self._is_gone = True

    def started(self, process: str, pid: int) -> None:
        self._update()

    def ready(self, process: str, after_s: float) -> None:
        self._waiting.pop(process, None)
        self.say(Text.assemble(("  ready  ", "green"), f"{process:<20} {after_s:5.1f} s"))
        self._update()

    def crashed(self, process: str, how: str, restart_in_s: float) -> None:
        when = f"in {restart_in_s:.1f} s" if restart_in_s else "now"
        self.say(Text.assemble(("  ended  ", "red"), f"{process:<20} {how}; starting it again {when}"))

    def stopped(self, process: str, how: str) -> None:
        if how == "killed":
            self.say(Text.assemble(("  killed ", "red"), f"{process:<20} did not stop by itself"))

    def logged(self, record: LogRecord) -> None:
        loading = loading_of(record)
        if loading is not None and record.process in self._waiting:
            self._waiting[record.process] = f" ({loading})"
            self._update()
        if LEVELS.get(record.level, 0) >= self._min_level:
            self.say(record_line(record))

    def failed(self, failure: ProcessFailed, log_path: str) -> None:
        """Print why the cluster cannot run: the process, its last lines, and the path of the log."""
        self.say(Text.assemble(("Failed: ", "bold red"), str(failure)))
        for record in failure.last_lines[-10:]:
            self.say(record_line(record))
        self.say(f"The whole log: {log_path}")

    def _update(self) -> None:
        if self._status is not None:
            text = f"waiting for {', '.join(name + far for name, far in sorted(self._waiting.items()))}"
            self._write(partial(self._status.update, text))


def record_line(record: LogRecord) -> Text:
    """Format a log record for users: local time, process, level above info, message and fields."""
    style = STYLES.get(record.level, "")
    clock = time.strftime("%H:%M:%S")
    level = f"{record.level} " if style else ""
    return Text.assemble((f"{clock} {record.process:<20} ", "dim"), (level, style), printable(str(record)))
