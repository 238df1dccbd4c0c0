"""The bound on open requests: beyond it a request is refused at once instead of slowing the others."""

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.metrics import OPEN_REQUESTS
from services.runtime.errors import Overloaded

RETRY_S = 2.0


class Admission:
    """Counts open requests in `num_open`."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self.num_open = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Holds one place while the block runs; Overloaded if there is none."""
        if self.num_open >= self._max_open:
            raise Overloaded(f"{self._max_open} requests are open, which is the limit", retry_after_s=RETRY_S)
        self.num_open += 1
        OPEN_REQUESTS.set(self.num_open)
        try:
            yield
        finally:
            self.num_open -= 1
            OPEN_REQUESTS.set(self.num_open)
