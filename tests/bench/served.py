"""Nano as `moonshard up` serves it, for benchmarks that speak to it over HTTP, and what its processes hold."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from services.local.checkpoints import NANO
from services.local.cluster import num_cores
from services.local.topology import Topology, default_threads
from tests.cluster.harness import Cluster


@contextmanager
def served_nano(**gateway: str) -> Iterator[Cluster]:
    """Start the processes of `moonshard up`, with some settings of the gateway, and wait until all serve."""
    topology = Topology(NANO, visions=1, settings={"gateway": gateway})
    topology = replace(topology, threads=default_threads(num_cores(), topology))
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        Cluster(topology, Path(folder) / "cluster.log") as cluster,
    ):
        cluster.wait_ready()
        yield cluster


@dataclass(frozen=True)
class Held:
    """What a process and its children hold.

    pss_bytes  its own memory, and its share of what others use, too
    """

    rss_bytes: int
    pss_bytes: int
    num_files: int


def held_by(pid: int) -> Held:
    """Return what a process holds now, with all that it started."""
    parent = psutil.Process(pid)
    rss = pss = files = 0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            memory = dict(
                line.split()[:2]
                for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
                if line.endswith("kB")
            )
            files += process.num_fds()
        except (psutil.Error, OSError):
            continue  # it ended meanwhile
        rss += int(memory["Rss:"]) * 1024
        pss += int(memory["Pss:"]) * 1024
    return Held(rss, pss, files)


class ErrorLines:
    """Errors in the log of a cluster, which begins a new file when it is large. Read it every few seconds."""

    def __init__(self, cluster: Cluster) -> None:
        self._path = cluster.log_path
        self._offset = 0
        self.found: list[str] = []

    def read(self) -> None:
        """Find the errors that were written since the last time."""
        if self._path.stat().st_size < self._offset:
            self._read(self._path.with_name(f"{self._path.name}.1"))
            self._offset = 0
        self._offset += self._read(self._path)

    def _read(self, path: Path) -> int:
        with path.open("rb") as file:
            file.seek(self._offset)
            text, end, _ = file.read().rpartition(b"\n")
        for line in map(json.loads, text.splitlines()):
            if line["level"] in ("ERROR", "CRITICAL") or "Traceback" in line["msg"]:
                self.found.append(json.dumps(line)[:1000])
        return len(text + end)
