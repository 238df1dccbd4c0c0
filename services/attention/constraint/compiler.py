"""Recipes from processes that can be ended: hostile grammars cost their own time and nobody else's."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress

from services.attention.constraint.compile_child import COMPUTE_S
from services.attention.constraint.fair_queue import FairQueue
from services.attention.constraint.recipes import Ask, Recipe
from services.runtime.errors import InvalidRequest, MoonshardError, Unavailable

NUM_CHILDREN = 2
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

    def __init__(self, num_children: int = NUM_CHILDREN) -> None:
        self._num_children = num_children
        self._queue: FairQueue[tuple[Ask, Future[Recipe]]] = FairQueue(num_children)
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[Ask, Verdict] = OrderedDict()
        self._num_bytes = 0
        self._working: dict[Ask, Future[Recipe]] = {}
        self._threads: list[threading.Thread] = []

    def recipe(self, ask: Ask, tenant: str) -> "Future[Recipe]":
        """The recipe, or InvalidRequest that says what is wrong. Raises Overloaded if too many wait.

        tenant  who asks, for fair shares; empty: every ask for itself
        """
        with self._lock:
            if ask in self._verdicts:
                self._verdicts.move_to_end(ask)
                return _finished(self._verdicts[ask])
            if ask in self._working:
                return self._working[ask]
            future: Future[Recipe] = Future()
            self._queue.put(tenant or f"ask {hash(ask)}", (ask, future))
            self._working[ask] = future
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._work, name=f"compiler-{number}", daemon=True)
                    for number in range(self._num_children)
                ]
                for thread in self._threads:
                    thread.start()
            return future

    def _work(self) -> None:
        child = _Child()
        while (taken := self._queue.take()) is not None:
            tenant, (ask, future) = taken
            started_s = time.monotonic()
            try:
                verdict: Verdict | MoonshardError = child.ask(ask)
            except OSError as error:
                verdict = MoonshardError(f"the grammar's process does not start: {error}")
            self._queue.done(tenant, time.monotonic() - started_s)
            with self._lock:
                del self._working[ask]
                if isinstance(verdict, Recipe | InvalidRequest):
                    self._keep(ask, verdict)
            if isinstance(verdict, Recipe):
                future.set_result(verdict)
            else:
                future.set_exception(verdict)
        child.close()

    def close(self) -> None:
        """End the processes. An ask that still waits fails."""
        for _, future in self._queue.close():
            future.set_exception(Unavailable("the compiler of grammars is closed"))
        for thread in self._threads:
            thread.join(CLOSE_S)

    def _keep(self, ask: Ask, verdict: Verdict) -> None:
        self._verdicts[ask] = verdict
        self._num_bytes += _size(ask, verdict)
        while len(self._verdicts) > MAX_CACHED or self._num_bytes > MAX_CACHED_BYTES:
            self._num_bytes -= _size(*self._verdicts.popitem(last=False))


class _Child:
    """A process that makes recipes, started again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, ask: Ask) -> Verdict:
        """What it answers, or the reason why it ended."""
        process = self._process = self._process or _start()
        assert process.stdin and process.stdout
        watch = threading.Timer(WALL_S, process.kill)
        watch.start()
        try:
            process.stdin.write(f"{json.dumps(ask)}\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watch.cancel()
        if not line.endswith("\n"):
            return InvalidRequest(_end_of(self.close()))
        reply = json.loads(line)
        return Recipe.load(reply["recipe"]) if "recipe" in reply else InvalidRequest(reply["refusal"])

    def close(self) -> int:
        """End the process and return its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with suppress(BrokenPipeError):
            process.communicate()
        return process.returncode


def _end_of(code: int) -> str:
    if code in (-signal.SIGPROF, -signal.SIGKILL):
        return f"it took more than {COMPUTE_S:g} s of computing to compile"
    return "it needs more memory to compile than a grammar may have"


def _start() -> "subprocess.Popen[str]":
    # Its imports are those of this process, wherever they come from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "services.attention.constraint.compile_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
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
