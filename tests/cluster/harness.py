"""A real cluster for a test: the processes of `moonshard up`, started by the same code, which a test can kill."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil
import pytest

from services.local.child import Child, ProcessFailed
from services.local.cluster import LocalCluster
from services.local.cluster_log import LogRecord
from services.local.restart import RestartPolicy
from services.local.topology import Role, Topology
from services.runtime.redis_access import RedisAccess
from services.runtime.redis_server import find_redis_server

T = TypeVar("T")

START_S = 120.0
# Tests kill the same process many times; the supervisor must not give up.
PATIENT = RestartPolicy(max_crashes=1000)

# Exact arithmetic, and limits so small that ordinary prompts fill several blocks, are chunked and are preempted.
SMALL: Mapping[Role, Mapping[str, str]] = {
    "attention": {"DTYPE": "float32", "BLOCK_TOKENS": "16", "NUM_BLOCKS": "256", "STEP_TOKENS": "64"},
    # Even the shortest prompt goes through a prefill replica. Requests outwait a restart on a busy machine.
    "gateway": {"PREFILL_MIN_TOKENS": "0", "HOLD_S": "120"},
}


def small_topology(model: Path, settings: Mapping[Role, Mapping[str, str]] | None = None, **choices: Any) -> Topology:
    """Return a topology with small limits. `settings` come on top of SMALL, `choices` are the fields of Topology."""
    merged = {role: {**SMALL.get(role, {}), **(settings or {}).get(role, {})} for role in {*SMALL, *(settings or {})}}
    return Topology(model, settings=merged, dtype="float32", **choices)


class Cluster:
    """All processes of one topology, as a context manager: ready inside, ended and cleaned up after it.

    Tests need no event loop: the supervisor has a loop of its own, on a thread of its own.
    """

    def __init__(self, topology: Topology, log_path: Path) -> None:
        self.topology = replace(topology, port=_any_port(topology.host))
        self.log_path = log_path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor")
        self._cluster: LocalCluster | None = None

    @property
    def url(self) -> str:
        """The URL of the gateway, without /v1."""
        return self.topology.url

    @property
    def store_access(self) -> RedisAccess:
        """The key of the values that its processes store."""
        return RedisAccess(mac_file=self._local.folder.store_key)

    @property
    def store_urls(self) -> list[str]:
        return [spec.address for spec in self._local.specs if spec.name.startswith("redis-")]

    @property
    def names(self) -> list[str]:
        return list(self._local.children)

    @property
    def pids(self) -> dict[str, int]:
        """The ids of the running processes, by name."""
        return {name: child.pid for name, child in self._local.children.items() if child.pid is not None}

    def address(self, name: str) -> str:
        """The gRPC address of a process."""
        return self._child(name).spec.address

    def memory_bytes(self, name: str) -> int:
        return int(psutil.Process(self.pids[name]).memory_info().rss)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal and do not wait. SIGSTOP and SIGCONT make a process hang for a while."""
        self._call(lambda: self._child(name).signal(number))

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Kill a process and return when it has ended. The supervisor restarts it at once, unless it is held."""
        child = self._child(name)
        num_runs = len(child.exit_codes)
        self.send(name, number)
        self._wait(lambda: len(child.exit_codes) > num_runs, f"{name} to end")

    def ready(self) -> list[str]:
        """Running processes that have reported that they serve."""
        return [name for name, child in self._local.children.items() if child.is_ready]

    def setting(self, name: str, variable: str) -> str:
        """Return a setting of a process, by the name of its variable without the prefix."""
        return self._child(name).spec.env[f"MOONSHARD_{variable}"]

    def exit_codes(self, name: str) -> list[int]:
        """Return the exit codes of all ended runs of a process, the oldest first."""
        return list(self._child(name).exit_codes)

    def hold(self, name: str) -> None:
        """Keep the process down from its next end until `release`."""
        self._call(self._child(name).hold)

    def release(self, name: str) -> None:
        self._call(self._child(name).wake)

    def wait_ready(self, *names: str, timeout_s: float = START_S) -> None:
        """Return when these processes, or all, serve. Their health is read now, since one of their peers may be gone.

        All of them serve when the gateway knows it: until it has found a prefill replica, decode replicas do its work.
        """
        children = [self._child(name) for name in names or self.names]

        def all_serve() -> bool:
            serve = all(child.is_ready and child.spec.ready() for child in children)
            return serve and (bool(names) or self._gateway_sees_all())

        self._wait(all_serve, f"{names or 'all'} to serve", timeout_s)

    def restart(self, name: str) -> None:
        """End a process with SIGTERM and return when it serves again."""
        self.kill(name, signal.SIGTERM)
        self.wait_ready(name)

    def metrics(self, name: str) -> str:
        """Return the metrics of a process, in Prometheus' text format."""
        transport = httpx.HTTPTransport(uds=str(self._local.folder.metrics_socket(name)))
        with httpx.Client(transport=transport, timeout=30) as client:
            return client.get("http://localhost/metrics").raise_for_status().text

    def log(self, process: str | None = None) -> list[dict[str, Any]]:
        """Return the log lines of one process, or of all, oldest first."""
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
        return [line for line in lines if process in (None, line["process"])]

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._await(self._start())
        except ProcessFailed as failure:
            self._close()
            pytest.fail("\n".join([str(failure), *map(str, failure.last_lines), f"log: {self.log_path}"]))
        return self

    def __exit__(self, *_: object) -> None:
        """Stop everything. Fail if a process did not end cleanly on SIGTERM, or if anything is left."""
        pids = self.pids
        folder = self._local.folder.path
        children = list(self._local.children.values())
        self._close()
        unclean = {
            child.spec.name: "killed" if child.killed else child.exit_codes[-1]
            for child in children
            if child.spec.name in pids and (child.killed or child.exit_codes[-1] != 0)
        }
        left = [name for name, pid in pids.items() if psutil.pid_exists(pid)]
        # The messages have the values, because pytest does not rewrite the assertions of this file.
        assert not unclean, f"did not end cleanly on SIGTERM: {unclean}, see {self.log_path}"
        assert not left, f"still running: {left}"
        assert not folder.exists(), f"{folder} is still there"

    def _gateway_sees_all(self) -> bool:
        # The gateway polls a replica that was not ready again after up to a second, so it learns of it later than we.
        t = self.topology
        roles = {"tokenizer": t.tokenizers, "vision": t.visions, "prefill": t.prefills, "decode": t.decodes}
        shown = self.metrics("gateway").splitlines()
        return all(
            f'moonshard_gateway_serving_replicas{{role="{role}"}} {number:.1f}' in shown
            for role, number in roles.items()
            if number > 0
        )

    @property
    def _local(self) -> LocalCluster:
        assert self._cluster is not None, "not started"
        return self._cluster

    def _child(self, name: str) -> Child:
        return self._local.children[name]

    async def _start(self) -> None:
        self._cluster = LocalCluster(
            self.topology,
            redis_program=str(find_redis_server()),
            # The settings in the caller's environment do not reach the cluster.
            environ={name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")},
            log_path=self.log_path,
            reporter=Silent(),
            policy=PATIENT,
        )
        await self._cluster.start(START_S)

    def _close(self) -> None:
        if self._cluster is not None:
            self._await(self._cluster.stop())
        self._await(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _call(self, work: Callable[[], object]) -> None:
        async def on_loop() -> None:
            work()

        self._await(on_loop())

    def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
        async def poll() -> None:
            async with asyncio.timeout(timeout_s):
                while not await asyncio.to_thread(condition):
                    await asyncio.sleep(0.02)

        try:
            self._await(poll())
        except TimeoutError:
            pytest.fail(f"waited {timeout_s:g} s for {what}, see {self.log_path}")


class Silent:
    """A reporter that prints nothing: tests read the log."""

    def started(self, process: str, pid: int) -> None: ...
    def ready(self, process: str, after_s: float) -> None: ...
    def crashed(self, process: str, how: str, restart_in_s: float) -> None: ...
    def stopped(self, process: str, how: str) -> None: ...
    def logged(self, record: LogRecord) -> None: ...


def _any_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
