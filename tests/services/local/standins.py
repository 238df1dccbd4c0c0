"""Small processes that behave as a test needs, a supervisor of such processes, and a Reporter that remembers."""

import contextlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from services.local.cluster_log import ClusterLog, LogRecord
from services.local.processes import ProcessSpec, StopStage
from services.local.restart import RestartPolicy
from services.local.supervisor import Supervisor

# Ready as soon as it has made the file named by its last argument.
SERVE = "import pathlib, sys, time; pathlib.Path(sys.argv[-1]).touch(); time.sleep(60)"
IGNORE_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
# Prints a line on SIGTERM and ends, as a service does.
STOP_CLEANLY = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('stopped', flush=True))); "
IMPATIENT = RestartPolicy(first_pause_s=0.01)


@dataclass(frozen=True)
class FileReady:
    """Ready when the file exists; it is then removed, so that the next run has to make it again."""

    path: Path

    def __call__(self) -> bool:
        found = self.path.exists()
        self.path.unlink(missing_ok=True)
        return found


def python(name: str, code: str, folder: Path, *, grace_s: float = 5.0, stage=StopStage.HELPER) -> ProcessSpec:
    """Return a process that runs Python code; its last argument is the file that makes it ready."""
    path = folder / f"{name}.ready"
    argv = (sys.executable, "-I", "-S", "-c", code, str(path))
    return ProcessSpec(name, argv, FileReady(path), stop_stage=stage, grace_s=grace_s)


@dataclass
class Notes:
    """A Reporter that keeps its calls in order."""

    events: list[tuple] = field(default_factory=list)
    records: list[LogRecord] = field(default_factory=list)

    def started(self, process: str, pid: int) -> None:
        self.events.append(("started", process))

    def ready(self, process: str, after_s: float) -> None:
        self.events.append(("ready", process))

    def crashed(self, process: str, how: str, restart_in_s: float) -> None:
        self.events.append(("crashed", process, how))

    def stopped(self, process: str, how: str) -> None:
        self.events.append(("stopped", process, how))

    def logged(self, record: LogRecord) -> None:
        self.records.append(record)


@contextlib.asynccontextmanager
async def supervised(specs, tmp_path, policy=IMPATIENT):
    """A supervisor that has not been started yet; afterwards none of its processes may be alive."""
    notes = Notes()
    with ClusterLog(tmp_path / "cluster.log") as log:
        supervisor = Supervisor(specs, dict(os.environ), log, notes, policy)
        try:
            yield supervisor, notes
        finally:
            await supervisor.stop()
    assert [child.pid for child in supervisor.children.values()] == [None] * len(specs)
