"""`moonshard up`: runs a cluster in the foreground until Ctrl-C, a signal, or a process that fails for good."""

import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path

from services.local.child import ProcessFailed
from services.local.cluster import LocalCluster
from services.local.run_folder import ClusterState, StateFile, sweep
from services.local.terminal import Terminal
from services.local.topology import Topology

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATE_POLL_S = 0.5
SAME_SIGNAL_S = 0.5


async def run_cluster(
    topology: Topology,
    *,
    redis_program: str,
    environ: Mapping[str, str],
    cache: Path,
    log_path: Path,
    terminal: Terminal,
    stall_s: float,
    note: str,
) -> int:
    """Start the cluster, report on the terminal, and stop it again. Return the exit code.

    stall_s  time without progress after which the start fails
    note     printed with the address when the cluster serves
    """
    sweep(cache)
    cluster = LocalCluster(topology, redis_program=redis_program, environ=environ, log_path=log_path, reporter=terminal)
    with StateFile(cache) as state_file:
        run = _Run(cluster, state_file, terminal, started_at=time.time())
        try:
            return await run.until_stopped(stall_s, note)
        finally:
            terminal.end()
            await cluster.stop()
            terminal.say("Stopped.")


class _Run:
    """One cluster from its start to the reason for its stop."""

    def __init__(self, cluster: LocalCluster, state_file: StateFile, terminal: Terminal, started_at: float) -> None:
        self._cluster = cluster
        self._state_file = state_file
        self._terminal = terminal
        self._started_at = started_at
        self._stop = asyncio.Event()
        self._stopped_at = 0.0

    async def until_stopped(self, stall_s: float, note: str) -> int:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        keep_state = asyncio.create_task(self._keep_state())
        self._terminal.begin(list(self._cluster.children))
        try:
            if await self._or_stop(self._cluster.start(stall_s)):
                self._terminal.end()
                self._say_ready(note)
                await self._or_stop(self._raise_failure())
            return 0
        except ProcessFailed as failure:
            self._terminal.end()
            self._terminal.failed(failure, str(self._cluster.log.path))
            return 1
        finally:
            keep_state.cancel()

    def _on_signal(self) -> None:
        now = time.monotonic()
        if self._stop.is_set():
            # One Ctrl-C may arrive twice: from the terminal, and from `make` or `timeout`.
            if now - self._stopped_at > SAME_SIGNAL_S:
                self._cluster.supervisor.hurry()
            return
        self._stopped_at = now
        self._stop.set()
        self._terminal.end()
        self._terminal.say("Stopping; once more to stop at once.")

    async def _or_stop(self, coroutine: Coroutine[object, object, None]) -> bool:
        """Wait for the work. Return True, or its exception, when it is done; False when a signal came first."""
        work = asyncio.create_task(coroutine)
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not work.done():
            work.cancel()
            return False
        work.result()
        return True

    async def _raise_failure(self) -> None:
        raise await self._cluster.supervisor.failure()

    async def _keep_state(self) -> None:
        """Write the state file now and after every change of a process."""
        written = None
        while True:
            state = self._state()
            if state != written:
                self._state_file.write(state)
                written = state
            await asyncio.sleep(STATE_POLL_S)

    def _state(self) -> ClusterState:
        return ClusterState(
            url=self._cluster.topology.url,
            pid=os.getpid(),
            model=str(self._cluster.topology.model),
            log=str(self._cluster.log.path),
            run_folder=str(self._cluster.folder.path),
            started_at=self._started_at,
            processes=self._cluster.process_states(),
        )

    def _say_ready(self, note: str) -> None:
        topology = self._cluster.topology
        message = {"role": "user", "content": "Which one is bigger, 9.11 or 9.9?"}
        request = {"model": topology.model_name, "messages": [message], "max_tokens": 256}
        self._terminal.say(
            f"\nReady after {time.time() - self._started_at:.1f} s: {topology.url}\n"
            f"{note}\n"
            f"  curl {topology.url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
            f"    -d '{json.dumps(request)}'\n\n"
            f"  {command_name()} chat\n\n"
            f"Log: {self._cluster.log.path}\nCtrl-C stops everything."
        )


def command_name() -> str:
    """Return how to call `moonshard`: its name if it is on the PATH, else its path."""
    if shutil.which("moonshard"):
        return "moonshard"
    program = Path(sys.argv[0])
    return str(program) if program.name == "moonshard" else f"{sys.executable} -m services.local"
