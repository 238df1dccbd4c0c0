"""A bounded queue from which the tenant is served next that was served least, within a budget of computing time."""

import threading
import time
from collections import OrderedDict, deque
from typing import Generic, TypeVar

from services.runtime.errors import Overloaded, Unavailable

T = TypeVar("T")

MAX_WAITING = 2048
MAX_WAITING_OF_ONE = 512
RETRY_S = 2.0
MOST_TENANTS = 10_000
# A named tenant may use so much at once, and over time this share of one core.
BUDGET_S = 3.0
SHARE = 0.1


class FairQueue(Generic[T]):
    """Work of several tenants for a few workers. Safe to share between threads.

    One tenant occupies all workers but one at most, so that another never waits for the end of its work. Tenants
    without a name are one tenant, for which no budget holds: honest ones would pay for the others.
    """

    def __init__(self, num_workers: int) -> None:
        self._most_at_once = max(1, num_workers - 1)
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()
        self._spent: dict[str, tuple[float, float]] = {}  # seconds that were not forgotten yet, and as of when
        self._num_working: dict[str, int] = {}
        self._num_waiting = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, tenant: str, work: T) -> None:
        """Add work; Overloaded if too much waits or the tenant's budget is spent, Unavailable after `close`."""
        with self._changed:
            if self._is_closed:
                raise Unavailable("the compiler of grammars is closed")
            beyond_s = self._spent_s(tenant) - BUDGET_S
            if tenant and beyond_s > 0:
                again_s = RETRY_S + beyond_s / SHARE
                raise Overloaded("new grammars of this key need too much computing", retry_after_s=again_s)
            num_mine = len(self._waiting.get(tenant, ()))
            if self._num_waiting >= MAX_WAITING or num_mine >= MAX_WAITING_OF_ONE:
                raise Overloaded("too many grammars wait to be compiled", retry_after_s=RETRY_S)
            self._waiting.setdefault(tenant, deque()).append(work)
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
            self._spent[tenant] = self._spent_s(tenant) + seconds, time.monotonic()
            if len(self._spent) > MOST_TENANTS:
                self._spent = {one: spent for one, spent in self._spent.items() if self._spent_s(one) > 0}
            self._changed.notify_all()

    def _spent_s(self, tenant: str) -> float:
        """What counts against a tenant now; its share is forgotten as time goes by."""
        spent_s, as_of_s = self._spent.get(tenant, (0.0, 0.0))
        return max(0.0, spent_s - SHARE * (time.monotonic() - as_of_s))

    def _next(self) -> str | None:
        free = [one for one in self._waiting if self._num_working.get(one, 0) < self._most_at_once]
        return min(free, key=self._spent_s, default=None)
