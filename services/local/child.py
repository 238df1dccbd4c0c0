"""One process under supervision: started, listened to, started again after a crash, stopped."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol

from services.local.cluster_log import ClusterLog, LineSplitter, LogRecord
from services.local.processes import ProcessSpec
from services.local.restart import REFUSED_TO_START, RestartPolicy

LAUNCHER = Path(__file__).with_name("launch.py")
READY_POLL_S = 0.05
READ_BYTES = 64 * 1024
LAST_WORDS_S = 1.0


class ChildState(Enum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    ASLEEP = "asleep"
    STOPPED = "stopped"


class ProcessFailed(Exception):
    """A process of the cluster cannot be kept running. The message says which and why, for people."""

    def __init__(self, process: str, reason: str, last_lines: list[LogRecord]) -> None:
        super().__init__(f"{process} {reason}")
        self.process = process
        self.last_lines = last_lines


class Reporter(Protocol):
    """Who is told what happens to the processes: the terminal, or a test. Must not raise and must not block."""

    def started(self, process: str, pid: int) -> None: ...
    def ready(self, process: str, after_s: float) -> None: ...
    def crashed(self, process: str, how: str, restart_in_s: float) -> None: ...
    def stopped(self, process: str, how: str) -> None: ...
    def logged(self, record: LogRecord) -> None: ...


class Child:
    """Runs one ProcessSpec. All methods on one event loop; owner: the supervisor.

    `exit_codes` are those of every run so far, negative for a signal; `killed` tells that it did not end within its
    grace when it was stopped.
    """

    def __init__(
        self, spec: ProcessSpec, environ: Mapping[str, str], log: ClusterLog, policy: RestartPolicy, reporter: Reporter
    ) -> None:
        self.spec = spec
        self.state = ChildState.STOPPED
        self.exit_codes: list[int] = []
        self.killed = False
        self._environ = {**environ, **spec.env}
        self._log = log
        self._policy = policy
        self._reporter = reporter
        self._process: asyncio.subprocess.Process | None = None
        self._exited = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ready = asyncio.Event()
        self._may_run = asyncio.Event()
        self._may_run.set()
        self._asked_to_end = False
        self._terminated = False
        self._has_served = False
        self._crashed_at: list[float] = []

    @property
    def pid(self) -> int | None:
        """Of the running process; None between two runs."""
        return self._process.pid if self._process is not None and not self._exited.is_set() else None

    async def run(self) -> None:
        """Keeps the process running until `stop`; ProcessFailed when that is hopeless."""
        try:
            while await self._may_start():
                await self._run_once()
                if not self._stopping.is_set() and not self._asked_to_end:
                    await self._pause()
        except OSError as error:
            raise ProcessFailed(self.spec.name, f"cannot be started: {error}", []) from error
        finally:
            self.state = ChildState.STOPPED

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        await self._ready.wait()

    def hold(self) -> None:
        """From its next end on, the process stays down until `release`."""
        self._may_run.clear()

    def release(self) -> None:
        self._may_run.set()

    @property
    def is_asleep(self) -> bool:
        """Whether it is meant to be down."""
        return self.state is ChildState.ASLEEP or self._asked_to_end

    def wake(self) -> None:
        """From now on the process runs, after `sleep` or before its first start."""
        self._may_run.set()

    async def sleep(self, hurry: asyncio.Event) -> None:
        """Ends the process in order, as `stop` does, until `wake`. That is no crash."""
        self._may_run.clear()
        if self.pid is None:
            self.state = ChildState.ASLEEP
        else:
            self._asked_to_end = True
            await self._end(hurry)

    async def stop(self, hurry: asyncio.Event) -> None:
        """SIGTERM, and SIGKILL after the grace or as soon as `hurry` is set. Returns when the process is gone."""
        self._stopping.set()
        self._may_run.set()
        if self._process is not None and not self._exited.is_set():
            await self._end(hurry)

    async def _end(self, hurry: asyncio.Event) -> None:
        # Once: a second signal would cut short what the first one lets it finish.
        if not self._terminated:
            self._terminated = True
            self.signal(signal.SIGTERM)
        await _wait_any(self.spec.grace_s, self._exited, hurry)
        if not self._exited.is_set():
            self.killed = True
            self.signal(signal.SIGKILL)
            await self._exited.wait()
        self._reporter.stopped(self.spec.name, "killed" if self.killed else describe_exit(self.exit_codes[-1]))

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the running process; nothing if there is none."""
        if self._process is not None and not self._exited.is_set():
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                return

    async def _may_start(self) -> bool:
        """Waits while the process is asleep; False once it is stopped for good."""
        if not self._may_run.is_set() and not self._stopping.is_set():
            self.state = ChildState.ASLEEP
        await self._may_run.wait()
        self._asked_to_end = False
        return not self._stopping.is_set()

    async def _run_once(self) -> None:
        """From one start to the end of that run, whose exit code is then the last of `exit_codes`."""
        self.state = ChildState.STARTING
        # Our own pipe: with asyncio's, `wait` returns only when every process that inherited it has closed it.
        read_end, write_end = os.pipe()
        try:
            process = await self._spawn(write_end)
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._process = process
        self._terminated = False
        self._exited.clear()
        self._reporter.started(self.spec.name, process.pid)
        if self._stopping.is_set():
            # `stop` came while the process was being made and did not see it; it cannot have begun anything yet.
            process.kill()
        output = asyncio.create_task(self._read_output(read_end))
        ready = asyncio.create_task(self._poll_ready())
        code = await process.wait()
        # Whatever it started itself and left behind goes with it.
        _kill_group(process.pid)
        self.exit_codes.append(code)
        self._ready.clear()
        ready.cancel()
        await asyncio.wait([output, ready], timeout=LAST_WORDS_S)
        output.cancel()
        self._exited.set()

    async def _spawn(self, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            # -I and -S: the launcher needs no site-packages and starts twice as fast without.
            *(sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *self.spec.argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=self._environ,
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops in order.
            start_new_session=True,
        )

    async def _pause(self) -> None:
        """Between a crash and the next start; ProcessFailed if there should be none."""
        pause_s = self._after_crash(self.exit_codes[-1])
        self._reporter.crashed(self.spec.name, describe_exit(self.exit_codes[-1]), pause_s)
        self.state = ChildState.RESTARTING
        await _wait_any(pause_s, self._stopping)
        await self._may_run.wait()

    async def _poll_ready(self) -> None:
        started_at = time.monotonic()
        # The answer is in another process: there is no event to wait for.
        while not await asyncio.to_thread(self.spec.ready):
            await asyncio.sleep(READY_POLL_S)
        self._has_served = True
        self.state = ChildState.READY
        self._reporter.ready(self.spec.name, time.monotonic() - started_at)
        self._ready.set()

    async def _read_output(self, read_end: int) -> None:
        """Logs the lines of one run until nobody can write to the pipe any more."""
        reader = asyncio.StreamReader()
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), pipe
            )
            splitter = LineSplitter()
            try:
                data = b"-"
                while data:
                    data = await reader.read(READ_BYTES)
                    for line in splitter.feed(data):
                        self._reporter.logged(self._log.write(self.spec.name, line))
            finally:
                transport.close()

    def _after_crash(self, code: int) -> float:
        """Seconds until the next start, or ProcessFailed."""
        name, last_lines = self.spec.name, self._log.last(self.spec.name)
        if code == REFUSED_TO_START and not self._has_served:
            raise ProcessFailed(name, "refused to start", last_lines)
        now = time.monotonic()
        self._crashed_at.append(now)
        pause_s = self._policy.pause_s(self._crashed_at, now, has_served=self._has_served)
        if pause_s is None:
            often = f"{len(self._crashed_at)} times" if len(self._crashed_at) > 1 else "once"
            raise ProcessFailed(name, f"ended {often}, the last time {describe_exit(code)}", last_lines)
        return pause_s


def describe_exit(code: int) -> str:
    """For people: what a return code of a process means."""
    if code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"


async def _wait_any(timeout_s: float, *events: asyncio.Event) -> None:
    """Until one of the events or the time, whichever is first."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
