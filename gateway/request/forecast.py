"""When a request that comes now would begin: the work that waits here, over the rate at which work begins."""

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.metrics import PREDICTED_WAIT_SECONDS

DECAY = 0.97  # of a sample's weight with each that follows
MIN_SAMPLES = 8
REQUEST_TOKENS = 32.0  # what a request costs beside its prompt, in prompt tokens
# Before a rate is known so many may wait, and the others try again soon.
MAX_UNKNOWN = 64
UNKNOWN_S = 2.0
# A client that comes back finds the queue as full as this, so that an error of the rate does no harm.
FILLED = 0.8
MAX_PROMISE_S = 600.0
GRACE_S = 10.0  # a client that is later is not expected any more


@dataclass(eq=False, slots=True)
class Ticket:
    """One request that waits for its first token. `work` is in prompt tokens, an average until it is measured."""

    work: float


class Forecast:
    """Predicts waits of requests for their first token, from what this gateway sees.

    Other gateways share the replicas, and so the rate: each sees its own part of the queue and of the rate. While no
    replica is ready nothing begins, and that is no measure of how fast work begins with one.

    A client that is refused gets a time to come back, and its work has a place in the line until then. Without that all
    would come back at the same time, and be refused again. Clients have no names here, so the next one that comes when
    a promise is due is taken for the one that has it.

    serving_since  when replicas of all roles became ready, None while they are not
    """

    def __init__(self, serving_since: Callable[[], float | None], now: Callable[[], float] = time.monotonic) -> None:
        self._serving_since = serving_since
        self._now = now
        self._waiting: set[Ticket] = set()
        self._mean_work = 256.0
        self._num_samples = 0
        self._work = 0.0  # that began, decayed
        self._seconds = 0.0  # in which it did
        self._since_s = now()  # the last beginning, or the first wait after none
        self._promised: list[tuple[float, float]] = []  # a heap of when clients come back, and with how much work

    def enter(self) -> Ticket:
        """Add a request that waits."""
        if not self._waiting:
            self._since_s = self._now()
        ticket = Ticket(self._mean_work)
        self._waiting.add(ticket)
        return ticket

    def measure(self, ticket: Ticket, num_tokens: int) -> None:
        """Note the size of a waiting request, whose prompt is rendered now."""
        ticket.work = num_tokens + REQUEST_TOKENS
        self._mean_work += (ticket.work - self._mean_work) * (1 - DECAY)

    def begin(self, ticket: Ticket) -> None:
        """Take out a request that has its first token, as a sample of the rate."""
        if ticket not in self._waiting:
            return
        self._waiting.discard(ticket)
        self._work = self._work * DECAY + ticket.work
        self._seconds = self._seconds * DECAY + self._silence_s()
        self._since_s = self._now()
        self._num_samples += 1

    def leave(self, ticket: Ticket) -> None:
        """Take out a request that is over, whether or not it began."""
        self._waiting.discard(ticket)

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    def wait_s(self) -> float:
        """Return how long a request that comes now would wait; 0 while that is not known."""
        rate = self._rate()
        predicted_s = self._waiting_work() / rate if rate else 0.0
        PREDICTED_WAIT_SECONDS.set(predicted_s)
        return predicted_s

    def refusal_s(self, limit_s: float, is_back: bool | None = None) -> float | None:
        """Return None if a request that comes now begins within a time, else when to come back for that.

        is_back  whether it was refused before, where it says so
        """
        rate = self._rate()
        if not rate:
            is_far = len(self._waiting) >= MAX_UNKNOWN and self._serving_since() is not None
            return max(UNKNOWN_S, self._silence_s()) if is_far else None
        now_s = self._now()
        while self._promised and self._promised[0][0] < now_s - GRACE_S:
            heapq.heappop(self._promised)
        if self._promised and self._promised[0][0] <= now_s and is_back is not False:
            heapq.heappop(self._promised)
            ahead = self._waiting_work()
        else:
            ahead = self._waiting_work() + sum(work for _, work in self._promised)
        if ahead / rate <= limit_s:
            return None
        ahead = self._waiting_work() + sum(work for _, work in self._promised)
        again_s = max(1.0, ahead / rate - FILLED * limit_s)
        if again_s > MAX_PROMISE_S:
            return MAX_PROMISE_S
        heapq.heappush(self._promised, (now_s + again_s, self._mean_work))
        return again_s

    def _waiting_work(self) -> float:
        return sum(ticket.work for ticket in self._waiting)

    def _rate(self) -> float | None:
        """Return the work that begins in a second; None while that is not known."""
        if self._num_samples < MIN_SAMPLES or self._serving_since() is None:
            return None
        # A silence counts as soon as it is there, not only when something ends it.
        silence_s = self._silence_s() if self._waiting else 0.0
        return self._work / max(self._seconds + silence_s, 1e-6)

    def _silence_s(self) -> float:
        """Return the time since the last beginning in which one was possible."""
        serving_since_s = self._serving_since()
        return 0.0 if serving_since_s is None else self._now() - max(self._since_s, serving_since_s)
