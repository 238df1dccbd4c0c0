"""A bounded queue from which the tenant is served next that was served least."""

import threading
import time
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from services.runtime.errors import Overloaded, Unavailable

T = TypeVar("T")

MAX_WAITING = 2048
MAX_WAITING_OF_ONE = 512
FORGET_S = 60.0  # after so long half of the service is forgotten
RETRY_S = 2.0
MOST_TENANTS = 10_000


class FairQueue(Generic[T]):
    """Work of several tenants for a few workers. Safe to share between threads.

    One tenant occupies all workers but one at most, so that another never waits for the end of its work.
    """

    def __init__(self, num_workers: int) -> None:
        self._most_at_once = max(1, num_workers - 1)
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._served_s: dict[str, float] = {}
        self._num_working: dict[str, int] = {}
        self._num_waiting = 0
        self._forgotten_s = time.monotonic()
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, tenant: str, work: T) -> None:
        """Add work; Overloaded if too much waits already, Unavailable after `close`."""
        with self._changed:
            if self._is_closed:
                raise Unavailable("the compiler of grammars is closed")
            mine = self._waiting.setdefault(tenant, deque())
            if self._num_waiting >= MAX_WAITING or len(mine) >= MAX_WAITING_OF_ONE:
                if not mine:
                    del self._waiting[tenant]
                raise Overloaded("too many grammars wait to be compiled", retry_after_s=RETRY_S)
            mine.append(work)
            self._num_waiting += 1
            self._changed.notify()

    def take(self) -> tuple[str, T] | None:
        """Wait for work and return it with its tenant, or None once the queue is closed. `done` must follow."""
        with self._changed:
            while (tenant := self._next()) is None or self._is_closed:
                if self._is_closed:
                    return None
                self._changed.wait()
            mine = self._waiting[tenant]
            work = mine.popleft()
            if not mine:
                del self._waiting[tenant]
            self._num_waiting -= 1
            self._num_working[tenant] = self._num_working.get(tenant, 0) + 1
            return tenant, work

    def close(self) -> list[T]:
        """Send the workers home and return the work that nobody does any more."""
        with self._changed:
            self._is_closed = True
            left = [work for mine in self._waiting.values() for work in mine]
            self._waiting.clear()
            self._changed.notify_all()
            return left

    def done(self, tenant: str, seconds: float) -> None:
        """Count the time that a worker spent on a tenant; it is free again."""
        with self._changed:
            self._num_working[tenant] -= 1
            if not self._num_working[tenant]:
                del self._num_working[tenant]
            self._served_s[tenant] = self._served_s.get(tenant, 0.0) + seconds
            now_s = time.monotonic()
            if now_s - self._forgotten_s > FORGET_S or len(self._served_s) > MOST_TENANTS:
                self._forgotten_s = now_s
                self._served_s = {key: spent / 2 for key, spent in self._served_s.items() if spent > 0.01}
            self._changed.notify_all()

    def _next(self) -> str | None:
        free = [one for one in self._waiting if self._num_working.get(one, 0) < self._most_at_once]
        return min(free, key=lambda tenant: self._served_s.get(tenant, 0.0), default=None)
