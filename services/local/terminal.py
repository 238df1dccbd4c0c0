"""What `moonshard up` shows of its processes: a line for every step, and the warnings among what they log."""

import time

from rich.console import Console
from rich.status import Status
from rich.text import Text

from services.local.child import ProcessFailed
from services.local.cluster_log import LogRecord

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


def printable(text: str) -> str:
    """Text without the control characters that would move the cursor, change colours or ring; line ends and tabs stay.

    What a model or a client wrote must not be able to command the terminal.
    """
    text = text.replace("\r", "")
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


class Terminal:
    """A Reporter for people. With a terminal it also shows who is not ready yet; in a pipe it only prints lines."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console = console
        self._min_level = LEVELS["INFO" if verbose else "WARNING"]
        self._waiting: set[str] = set()
        self._status: Status | None = None
        self._is_gone = False

    def begin(self, processes: list[str]) -> None:
        """From here until `end` the progress of these processes is shown."""
        self._waiting = set(processes)
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
            self._update()

    def end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, text: str | Text) -> None:
        """Prints a line, or nothing at all once nobody reads any more (a closed terminal, `| head`)."""
        if self._is_gone:
            return
        try:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        except OSError:
            self._is_gone = True
            self._console.quiet = True

    def started(self, process: str, pid: int) -> None:
        self._update()

    def ready(self, process: str, after_s: float) -> None:
        self._waiting.discard(process)
        self.say(Text.assemble(("  ready  ", "green"), f"{process:<20} {after_s:5.1f} s"))
        self._update()

    def crashed(self, process: str, how: str, restart_in_s: float) -> None:
        when = f"in {restart_in_s:.1f} s" if restart_in_s else "now"
        self.say(Text.assemble(("  ended  ", "red"), f"{process:<20} {how}; starting it again {when}"))

    def stopped(self, process: str, how: str) -> None:
        if how == "killed":
            self.say(Text.assemble(("  killed ", "red"), f"{process:<20} did not stop by itself"))

    def logged(self, record: LogRecord) -> None:
        if LEVELS.get(record.level, 0) >= self._min_level:
            self.say(record_line(record))

    def failed(self, failure: ProcessFailed, log_path: str) -> None:
        """Why the cluster cannot run: the process, its last lines, and where there is more."""
        self.say(Text.assemble(("Failed: ", "bold red"), str(failure)))
        for record in failure.last_lines[-10:]:
            self.say(record_line(record))
        self.say(f"The whole log: {log_path}")

    def _update(self) -> None:
        if self._status is not None:
            self._status.update(f"waiting for {', '.join(sorted(self._waiting))}")


def record_line(record: LogRecord) -> Text:
    """A log record for people: local time, process, level if it matters, message and fields."""
    style = STYLES.get(record.level, "")
    clock = time.strftime("%H:%M:%S")
    level = f"{record.level} " if style else ""
    return Text.assemble((f"{clock} {record.process:<20} ", "dim"), (level, style), printable(str(record)))
