"""Functions of `moonshard stop` and `moonshard logs`, for a cluster that runs in another terminal."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from services.local.cluster_log import LogRecord, parse_line
from services.local.run_folder import ClusterState

POLL_S = 0.2


def stop_cluster(cluster: ClusterState, timeout_s: float) -> bool:
    """Stop a cluster in order, as Ctrl-C does; kill it after `timeout_s`. Return whether it stopped by itself."""
    try:
        supervisor = psutil.Process(cluster.pid)
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        # Its processes are killed with it.
        supervisor.kill()
        supervisor.wait(timeout_s)
        return False
    return True


def read_log(path: Path, process: str = "", *, follow: bool = False) -> Iterator[LogRecord]:
    """Yield the lines of a cluster's log, of one process or all; with `follow` also new lines, endlessly."""
    file = path.open(encoding="utf-8", errors="replace")
    try:
        while True:
            while line := file.readline():
                record = _record(line)
                if record is not None and process in {"", record.process}:
                    yield record
            if not follow:
                return
            time.sleep(POLL_S)
            # A log that has grown too long is renamed, and a new one is begun.
            if path.exists() and os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                file.close()
                file = path.open(encoding="utf-8", errors="replace")
    finally:
        file.close()


def _record(line: str) -> LogRecord | None:
    try:
        process = str(json.loads(line)["process"])
    except (ValueError, TypeError, KeyError):
        return None
    return parse_line(process, line.encode(), now="")
