"""Admission: a bound on open requests, and a bound on the predicted wait for the first token."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.http.request_context import RequestContext
from gateway.metrics import OPEN_REQUESTS
from gateway.request.forecast import Forecast, Ticket
from services.runtime.errors import Overloaded

RETRY_S = 2.0


class Admission:
    """Counts open requests in `num_open`, and refuses at once what could not begin soon enough."""

    def __init__(self, max_open: int, begin_s: float, forecast: Forecast) -> None:
        self._max_open = max_open
        self._begin_s = begin_s
        self._forecast = forecast
        self.num_open = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold one place while the block runs; Overloaded if there is none."""
        if self.num_open >= self._max_open:
            raise Overloaded(f"{self._max_open} requests are open, which is the limit", retry_after_s=RETRY_S)
        self.num_open += 1
        OPEN_REQUESTS.set(self.num_open)
        try:
            yield
        finally:
            self.num_open -= 1
            OPEN_REQUESTS.set(self.num_open)

    @contextmanager
    def wait(self, context: RequestContext) -> Iterator[Ticket]:
        """Take a place among those that wait for a first token.

        Raises Overloaded if the wait would be longer than `begin_s`, or than the client waits.
        """
        wait_s = self._forecast.wait_s()
        limit_s = min(context.left_s(self._begin_s), context.patience_s)
        again_s = self._forecast.refusal_s(limit_s, context.is_retry)
        if again_s is not None:
            waiting = f"{self._forecast.num_waiting} requests wait to begin, which takes about {wait_s:.0f} s"
            rule = f"this one would not begin within {limit_s:.0f} s"
            raise Overloaded(f"{waiting}; {rule}", retry_after_s=again_s)
        ticket = self._forecast.enter()
        try:
            yield ticket
        finally:
            self._forecast.leave(ticket)
