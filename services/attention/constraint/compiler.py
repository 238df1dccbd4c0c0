"""Recipes from processes that can be ended: hostile grammars cost their own time and nobody else's.

An ask is tried for a short time first, beside few others. What takes longer is tried again where only such asks wait
for each other, with more time and behind everything else that the machine has to do.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress

from services.attention.constraint.fair_queue import FairQueue
from services.attention.constraint.recipes import Ask, Recipe
from services.runtime.errors import InvalidRequest, MoonshardError, Unavailable

NUM_QUICK = 2
QUICK_S = 0.1  # of computing; ordinary grammars take a few milliseconds
QUICK_NICENESS = 5
SLOW_S = 2.0
SLOW_NICENESS = 19
# Slow work of tenants without a name counts together.
UNKNOWN = "(unknown)"
MAX_CACHED = 2048
MAX_CACHED_BYTES = 64 * 1024 * 1024
# A process that is starved of its computing time is ended, too.
WALL_S = 30.0
CLOSE_S = 5.0  # longer than one ask may compute

Verdict = Recipe | InvalidRequest


class Compiler:
    """Makes recipes in a few processes of its own, which start with the first ask. Safe to share between threads.

    Recipes and refusals are kept, so that the same ask is not worked on twice.
    """

    def __init__(self, num_quick: int = NUM_QUICK) -> None:
        self._num_quick = num_quick
        self._quick: FairQueue[Ask] = FairQueue(num_quick)
        self._slow: FairQueue[Ask] = FairQueue(1)
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[Ask, Verdict] = OrderedDict()
        self._num_bytes = 0
        self._working: dict[Ask, Future[Recipe]] = {}
        self._threads: list[threading.Thread] = []

    def recipe(self, ask: Ask, tenant: str) -> "Future[Recipe]":
        """Ask for a recipe; the future may fail with InvalidRequest. Raises Overloaded as `FairQueue.put`.

        tenant  who asks, for fair shares; empty: unknown
        """
        with self._lock:
            if ask in self._verdicts:
                self._verdicts.move_to_end(ask)
                return _finished(self._verdicts[ask])
            if ask in self._working:
                return self._working[ask]
            self._quick.put(tenant, ask)
            future = self._working[ask] = Future()
            if not self._threads:
                self._start()
            return future

    def knows(self, ask: Ask) -> bool:
        """Whether the verdict is known already, or being made."""
        with self._lock:
            return ask in self._verdicts or ask in self._working

    def learn(self, ask: Ask, verdict: Verdict) -> None:
        """Take over a verdict that another compiler reached."""
        with self._lock:
            if ask not in self._verdicts:
                self._keep(ask, verdict)

    def _start(self) -> None:
        works = [self._work_quickly] * self._num_quick + [self._work_slowly]
        self._threads = [threading.Thread(target=work, name="compiler", daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def _work_quickly(self) -> None:
        child = _Child(QUICK_S, QUICK_NICENESS)
        while (taken := self._quick.take()) is not None:
            tenant, ask = taken
            verdict = child.timed(ask, tenant, self._quick)
            if verdict is None:
                try:
                    self._slow.put(tenant or UNKNOWN, ask)
                    continue
                except MoonshardError as error:
                    verdict = error
            self._settle(ask, verdict)
        child.close()

    def _work_slowly(self) -> None:
        child = _Child(SLOW_S, SLOW_NICENESS)
        while (taken := self._slow.take()) is not None:
            tenant, ask = taken
            verdict = child.timed(ask, tenant, self._slow)
            self._settle(ask, verdict or InvalidRequest(f"it took more than {SLOW_S:g} s of computing to compile"))
        child.close()

    def _settle(self, ask: Ask, verdict: Verdict | MoonshardError) -> None:
        with self._lock:
            future = self._working.pop(ask)
            if isinstance(verdict, Recipe | InvalidRequest):
                self._keep(ask, verdict)
        if isinstance(verdict, Recipe):
            future.set_result(verdict)
        else:
            future.set_exception(verdict)

    def close(self) -> None:
        """End the processes. An ask that still waits fails."""
        for ask in [*self._quick.close(), *self._slow.close()]:
            self._settle(ask, Unavailable("the compiler of grammars is closed"))
        for thread in self._threads:
            thread.join(CLOSE_S)

    def _keep(self, ask: Ask, verdict: Verdict) -> None:
        self._verdicts[ask] = verdict
        self._num_bytes += _size(ask, verdict)
        while len(self._verdicts) > MAX_CACHED or self._num_bytes > MAX_CACHED_BYTES:
            self._num_bytes -= _size(*self._verdicts.popitem(last=False))


class _Child:
    """A process that makes recipes, started with the first ask and again if it dies.

    seconds   of computing for each ask
    niceness  of the work on it
    """

    def __init__(self, seconds: float, niceness: int) -> None:
        self._seconds = seconds
        self._niceness = niceness
        self._process: subprocess.Popen[str] | None = None
        self._computed_s = 0.0  # for the last ask

    def timed(self, ask: Ask, tenant: str, queue: FairQueue[Ask]) -> Verdict | MoonshardError | None:
        """Work on what the queue gave and account for its computing; None if the time did not suffice."""
        self._computed_s = 0.0
        try:
            return self.ask(ask)
        except OSError as error:
            return MoonshardError(f"the process that compiles grammars does not start: {error}")
        finally:
            queue.done(tenant, self._computed_s)

    def ask(self, ask: Ask) -> Verdict | None:
        """Let the process work on one ask; None if the time did not suffice."""
        process = self._process = self._process or _start(self._seconds, self._niceness)
        assert process.stdin and process.stdout
        # Its fork goes with it.
        watch = threading.Timer(WALL_S, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        try:
            process.stdin.write(f"{json.dumps(ask)}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        self._computed_s = self._seconds
        if not line.endswith("\n"):
            self.close()
            return None
        reply = json.loads(line)
        self._computed_s = reply.get("computed_s", self._seconds)
        match reply:
            case {"recipe": recipe}:
                return Recipe.load(recipe)
            case {"refusal": reason}:
                return InvalidRequest(reason)
            case {"end": "time"}:
                return None
        return InvalidRequest("it needs more memory to compile than a grammar may have")

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(BrokenPipeError):
                process.communicate()


def _start(seconds: float, niceness: int) -> "subprocess.Popen[str]":
    # Its imports are those of this process, wherever they come from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "services.attention.constraint.compile_child", f"{seconds:g}", f"{niceness}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        process_group=0,
    )


def _finished(verdict: Verdict) -> "Future[Recipe]":
    future: Future[Recipe] = Future()
    if isinstance(verdict, Recipe):
        future.set_result(verdict)
    else:
        # An exception of its own for everyone: raising adds to it.
        future.set_exception(InvalidRequest(verdict.message))
    return future


def _size(ask: Ask, verdict: Verdict) -> int:
    made = len(verdict.source) + len(verdict.grammar) + len(verdict.ending) if isinstance(verdict, Recipe) else 0
    return len(ask.text) + made
