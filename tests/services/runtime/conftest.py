"""Real servers for the tests of the runtime."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.runtime.redis_server import RedisServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets; pytest's folders may be too long."""
    with tempfile.TemporaryDirectory(prefix="moonshard-") as folder:
        yield Path(folder)


@pytest.fixture
def redis_server(socket_folder: Path) -> Iterator[RedisServer]:
    with RedisServer(socket_folder) as server:
        yield server


class ProbeProcess:
    """`probe.py` as a process, whose log is read line by line."""

    def __init__(self, **variables: str) -> None:
        self.address = variables["listen"]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MOONSHARD_")}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.services.runtime.probe"],
            cwd=ROOT,
            env=clean | {f"MOONSHARD_{key.upper()}": value for key, value in variables.items()},
            stderr=subprocess.PIPE,
            text=True,
        )

    async def line(self, msg: str) -> dict:
        """Return the next line of the log with this message."""
        while text := await asyncio.to_thread(self.process.stderr.readline):
            line = json.loads(text)
            if line["msg"] == msg:
                return line
        raise AssertionError(f"the log ended without {msg!r}")

    async def end(self) -> tuple[int, list[str]]:
        """Wait for the exit; return the exit code and the rest of the log."""
        code = await asyncio.to_thread(self.process.wait, timeout=20)
        # `communicate` would miss what `line` has buffered.
        return code, self.process.stderr.read().splitlines()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()


@pytest.fixture
def start_probe(socket_folder: Path):
    started: list[ProbeProcess] = []

    def start(**variables: str) -> ProbeProcess:
        variables = {"listen": f"unix:{socket_folder}/probe.sock", "log_level": "debug"} | variables
        started.append(ProbeProcess(**variables))
        return started[-1]

    yield start
    for probe in started:
        probe.close()


def free_port() -> int:
    """Return a free port on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Causes:
    """Counts missing values by cause, from its creation on."""

    def __init__(self) -> None:
        self._before = self._now()

    def _now(self) -> Counter:
        family = next(family for family in REGISTRY.collect() if family.name == "moonshard_store_reads")
        counted: Counter = Counter()
        for sample in family.samples:
            if sample.name.endswith("_total"):
                counted[sample.labels["outcome"]] += sample.value  # sum over the kinds of values
        return counted

    def __call__(self) -> dict[str, float]:
        return dict(self._now() - self._before)
