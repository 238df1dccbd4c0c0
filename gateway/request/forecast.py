"""When a request that comes now would begin: the work that waits here, over the rate at which work begins."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from gateway.metrics import PREDICTED_WAIT_SECONDS

DECAY = 0.97  # of a sample's weight with each that follows
MIN_SAMPLES = 8
REQUEST_TOKENS = 32.0  # what a request costs beside its prompt, in prompt tokens


@dataclass(eq=False, slots=True)
class Ticket:
    """One request that waits for its first token. `work` is in prompt tokens, an average until it is measured."""

    work: float


class Forecast:
    """Predicts waits of requests for their first token, from what this gateway sees.

    Other gateways share the replicas, and so the rate: each sees its own part of the queue and of the rate. While no
    replica is ready nothing begins, and that is no measure of how fast work begins with one.

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
        predicted_s = 0.0
        if self._waiting and self._num_samples >= MIN_SAMPLES and self._serving_since() is not None:
            # A silence counts as soon as it is there, not only when something ends it.
            rate = self._work / max(self._seconds + self._silence_s(), 1e-6)
            predicted_s = sum(ticket.work for ticket in self._waiting) / rate
        PREDICTED_WAIT_SECONDS.set(predicted_s)
        return predicted_s

    def _silence_s(self) -> float:
        """Return the time since the last beginning in which one was possible."""
        serving_since_s = self._serving_since()
        return 0.0 if serving_since_s is None else self._now() - max(self._since_s, serving_since_s)
