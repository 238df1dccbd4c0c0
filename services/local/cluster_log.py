"""The log of a cluster: the output of all processes as JSON lines, each with the name of its process."""

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

MAX_LINE_BYTES = 64 * 1024
MAX_FILE_BYTES = 64 * 1024 * 1024
NUM_LAST_LINES = 20

# Level of output without our logger: a traceback of the interpreter, a message of a C++ library, Redis.
OUTPUT = "OUTPUT"

# The process is shown before each line, and a stack below it.
NOT_SHOWN = frozenset({"service", "instance", "logger", "stack"})


@dataclass(frozen=True)
class LogRecord:
    """One line of one process. `fields` has all fields except time, level and message."""

    process: str
    time: str
    level: str
    message: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Format for users: the message, further fields, and below them the stack of an exception."""
        shown = {
            name: value for name, value in self.fields.items() if name not in NOT_SHOWN and value not in (None, "")
        }
        extra = "".join(f"  {name}={value}" for name, value in shown.items())
        stack = self.fields.get("stack")
        return f"{self.message}{extra}" + (f"\n{stack}" if stack else "")

    def to_json(self) -> str:
        named = {"ts": self.time, "level": self.level, "process": self.process, "msg": self.message}
        return json.dumps({**named, **self.fields}, ensure_ascii=False, default=str)


def parse_line(process: str, line: bytes, now: str) -> LogRecord:
    """Parse a line of `process`; a line that is not from our logger becomes a record of level OUTPUT."""
    text = line.decode(errors="replace").rstrip()
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or "msg" not in fields:
        return LogRecord(process, now, OUTPUT, text)
    time, level, message = (
        str(fields.pop(name, default)) for name, default in (("ts", now), ("level", ""), ("msg", ""))
    )
    fields.pop("process", None)
    return LogRecord(process, time, level.upper(), message, fields)


class ClusterLog:
    """Appends the lines of all processes to one file, and keeps the last lines of each for error messages.

    The previous run's file is kept with the suffix `.1`, and so is a file that has grown beyond `max_file_bytes`.
    `num_lost` lines could not be written. Owned by the supervisor, on its event loop.
    """

    def __init__(self, path: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self.path = path
        self.num_lost = 0
        self._max_file_bytes = max_file_bytes
        self._last: defaultdict[str, deque[LogRecord]] = defaultdict(lambda: deque(maxlen=NUM_LAST_LINES))
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open_new()

    def write(self, process: str, line: bytes) -> LogRecord:
        """Append a line of a process, given without its line end."""
        record = parse_line(process, line, datetime.now(UTC).isoformat(timespec="milliseconds"))
        self.add(record)
        return record

    def add(self, record: LogRecord) -> None:
        self._last[record.process].append(record)
        try:
            self._file.write(record.to_json() + "\n")
            if self._file.tell() > self._max_file_bytes:
                self._file.close()
                self._file = self._open_new()
        except OSError:
            # A full disk must not stop reading, because a process blocks when its output is not read.
            self.num_lost += 1

    def last(self, process: str) -> list[LogRecord]:
        """Return the last lines of a process, oldest first."""
        return list(self._last[process])

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_new(self) -> IO[str]:
        if self.path.exists():
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        # Line buffered, so that `tail -f` and tests see each line at once.
        return self.path.open("w", buffering=1, encoding="utf-8")


class LineSplitter:
    """Cuts a byte stream into lines; a longer line is cut at MAX_LINE_BYTES, so that memory is bounded."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without line ends; empty `data` is the end of the stream."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES or (not data and rest):
            lines.append(rest)
            rest = b""
        self._rest = rest
        return [line[:MAX_LINE_BYTES] for line in lines if line.strip()]
