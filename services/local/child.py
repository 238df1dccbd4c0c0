"""One supervised process: its start, output, readiness, restarts and end."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from services.local.child_state import RUNNING, TRANSITIONS, ChildState, Event, Order
from services.local.cluster_log import ClusterLog, LineSplitter, LogRecord
from services.local.loading import Loading, loading_of
from services.local.processes import ProcessSpec
from services.local.restart import REFUSED_TO_START, RestartPolicy

LAUNCHER = Path(__file__).with_name("launch.py")
READY_POLL_S = 0.05
READ_BYTES = 64 * 1024
LAST_WORDS_S = 1.0


class ProcessFailed(Exception):
    """A process of the cluster cannot be kept running. The message is for users: which one, and why."""

    def __init__(self, process: str, reason: str, last_lines: list[LogRecord]) -> None:
        super().__init__(f"{process} {reason}")
        self.process = process
        self.last_lines = last_lines


class Reporter(Protocol):
    """Receives events of the processes. Must not raise and must not block."""

    def started(self, process: str, pid: int) -> None: ...
    def ready(self, process: str, after_s: float) -> None: ...
    def crashed(self, process: str, how: str, restart_in_s: float) -> None: ...
    def stopped(self, process: str, how: str) -> None: ...
    def logged(self, record: LogRecord) -> None: ...


class Child:
    """Runs one ProcessSpec. Owned by the supervisor; all methods run on its event loop.

    exit_codes     of every run so far, negative for a signal
    killed         it did not end within its grace when it was stopped
    loading        how far it has loaded, before it serves
    progressed_at  when it became ready, or had loaded more than before
    """

    def __init__(
        self, spec: ProcessSpec, environ: Mapping[str, str], log: ClusterLog, policy: RestartPolicy, reporter: Reporter
    ) -> None:
        self.spec = spec
        self.state = ChildState.STOPPED
        self.exit_codes: list[int] = []
        self.killed = False
        self.loading: Loading | None = None
        self.progressed_at = time.monotonic()
        self._environ = {**environ, **spec.env}
        self._log = log
        self._policy = policy
        self._reporter = reporter
        self._order = Order.RUN
        self._changed = asyncio.Event()  # set at the next change of state or order, then replaced
        self._process: asyncio.subprocess.Process | None = None
        self._exited = asyncio.Event()  # for the present run
        self._has_served = False
        self._crashed_at: list[float] = []

    @property
    def pid(self) -> int | None:
        """Process id; None between two runs."""
        return self._process.pid if self._process is not None and self.state in RUNNING else None

    async def run(self) -> None:
        """Keep the process running until `stop`. Raises ProcessFailed if restarts will not help."""
        try:
            while await self._may_start():
                await self._run_once()
                if self.state is ChildState.RESTARTING and self._order is not Order.STOP:
                    await self._pause()
        except OSError as error:
            raise ProcessFailed(self.spec.name, f"cannot be started: {error}", []) from error
        finally:
            self._move(Event.STOP)

    @property
    def is_ready(self) -> bool:
        return self.state is ChildState.READY

    async def wait_ready(self) -> None:
        await self._until(lambda: self.is_ready)

    def hold(self) -> None:
        """Keep the process down after its next end, until `wake`."""
        self._give(Order.SLEEP)

    @property
    def is_asleep(self) -> bool:
        """Whether the process is down, or ending, by order."""
        return self.state in {ChildState.ASLEEP, ChildState.ENDING}

    def wake(self) -> None:
        """Let the process run again, after `hold` or `sleep` or before its first start."""
        self._give(Order.RUN)

    async def sleep(self, hurry: asyncio.Event) -> None:
        """End the process in order, as `stop` does, and keep it down until `wake`. This does not count as a crash."""
        self._give(Order.SLEEP)
        if self.state in RUNNING:
            await self._end(hurry)
        else:
            self._move(Event.SLEEP)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Send SIGTERM, and SIGKILL after the grace or when `hurry` is set. Return when the process is gone."""
        self._give(Order.STOP)
        if self.state in RUNNING:
            await self._end(hurry)

    async def _end(self, hurry: asyncio.Event) -> None:
        exited = self._exited
        # Sent only once: a second SIGTERM would end a process early that is finishing its work.
        if self.state is not ChildState.ENDING:
            self._move(Event.TERMINATE)
            self.signal(signal.SIGTERM)
        await _wait_any(self.spec.grace_s, exited, hurry)
        if not exited.is_set():
            self.killed = True
            self.signal(signal.SIGKILL)
            await exited.wait()
        self._reporter.stopped(self.spec.name, "killed" if self.killed else describe_exit(self.exit_codes[-1]))

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._notify()

    def _give(self, order: Order) -> None:
        self._order = order
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait until state and order fulfil the condition, or until the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    await self._changed.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process if it runs."""
        if self._process is not None and self.state in RUNNING:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _may_start(self) -> bool:
        """Wait while the process is asleep. Return False if it is stopped for good."""
        if self._order is Order.SLEEP:
            self._move(Event.SLEEP)
        await self._until(lambda: self._order is not Order.SLEEP)
        return self._order is Order.RUN

    async def _run_once(self) -> None:
        """Start the process, wait for its end, and append its exit code to `exit_codes`."""
        # Our own pipe, because with asyncio's `wait` returns only when every process that inherited it has closed it.
        read_end, write_end = os.pipe()
        try:
            process = await self._spawn(write_end)
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._process = process
        self._exited = asyncio.Event()
        self._move(Event.START)
        self.loading = None
        self._reporter.started(self.spec.name, process.pid)
        if self._order is not Order.RUN:
            # The order came during the start and missed the process, which cannot have begun its work yet.
            self._move(Event.TERMINATE)
            process.kill()
        output = asyncio.create_task(self._read_output(read_end))
        ready = asyncio.create_task(self._poll_ready())
        code = await process.wait()
        # Processes that it started and left behind are killed too.
        _kill_group(process.pid)
        self.exit_codes.append(code)
        self._move(Event.EXIT)
        ready.cancel()
        await asyncio.wait([output, ready], timeout=LAST_WORDS_S)
        output.cancel()
        self._exited.set()

    async def _spawn(self, output: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            # -I and -S: without site-packages, which it does not need, the launcher starts twice as fast.
            *(sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *self.spec.argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=self._environ,
            # A new session, so that Ctrl-C in the terminal reaches only the supervisor, which stops all in order.
            start_new_session=True,
        )

    async def _pause(self) -> None:
        """Wait between a crash and the next start. Raises ProcessFailed if there must be none."""
        pause_s = self._after_crash(self.exit_codes[-1])
        self._reporter.crashed(self.spec.name, describe_exit(self.exit_codes[-1]), pause_s)
        await self._until(lambda: self._order is Order.STOP, pause_s)
        if self.state is ChildState.RESTARTING:
            await self._until(lambda: self._order is not Order.SLEEP)

    async def _poll_ready(self) -> None:
        started_at = time.monotonic()
        # Polled, because another process cannot set an event of ours.
        while not await asyncio.to_thread(self.spec.ready):
            await asyncio.sleep(READY_POLL_S)
        if self.state is ChildState.STARTING:
            self._has_served = True
            self.loading, self.progressed_at = None, time.monotonic()
            self._move(Event.SERVE)
            self._reporter.ready(self.spec.name, time.monotonic() - started_at)

    async def _read_output(self, read_end: int) -> None:
        """Log the lines of one run until every writer has closed the pipe."""
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
                        record = self._log.write(self.spec.name, line)
                        self._note_progress(record)
                        self._reporter.logged(record)
            finally:
                transport.close()

    def _note_progress(self, record: LogRecord) -> None:
        loading = loading_of(record)
        if loading is None or self.state is not ChildState.STARTING:
            return
        if loading.loaded_bytes > (self.loading.loaded_bytes if self.loading is not None else 0):
            self.progressed_at = time.monotonic()
        self.loading = loading

    def _after_crash(self, code: int) -> float:
        """Return the seconds until the next start, or raise ProcessFailed."""
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
    """Describe a process's exit code for users."""
    if code >= 0:
        return f"with exit code {code}"
    return f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"


async def _wait_any(timeout_s: float, *events: asyncio.Event) -> None:
    """Wait for the first of the events, or for the timeout."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
