"""Logs as lines of JSON on stderr, one object a line. A log never has text of users."""

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any

STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup_logging(level: str, service: str, instance: str = "") -> None:
    """Send every logger of this process, warnings and uncaught exceptions to stderr.

    Further fields of a line come from the call: `log.info("admitted", extra={"request_id": request_id})`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service, instance))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Its lines at level info have the URL of every request, which may be a user's.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


class JsonFormatter(logging.Formatter):
    """Formats {"ts", "level", "service", "msg"}, then the fields of `extra`, then "stack" after an exception."""

    def __init__(self, service: str, instance: str = "") -> None:
        super().__init__()
        self._process = {"service": service, "instance": instance} if instance else {"service": service}

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "ts": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            **self._process,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in STANDARD_FIELDS}
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("uncaught").critical("uncaught %s", kind.__name__, exc_info=(kind, error, trace))
