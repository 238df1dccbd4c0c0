"""The memory of request bodies: bounds for all open requests together and for each key."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.metrics import BODY_BYTES
from services.runtime.errors import Overloaded

LEASE = "moonshard.body"  # where the lease of a request stands in its scope
RETRY_S = 2.0


class BodyLease:
    """The bytes that one request holds. Owned by its budget, which takes them back at the end of the request."""

    def __init__(self, budget: "BodyBudget", owner: str) -> None:
        self._budget = budget
        self._owner = owner
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Take so many bytes more. Raises Overloaded where the key or the process has no room for them."""
        self._budget.take(self._owner, num_bytes)
        self.num_bytes += num_bytes


class BodyBudget:
    """Counts the bytes that requests hold, compressed and decompressed, from their arrival to the end of the answer."""

    def __init__(self, max_bytes: int, max_key_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_key_bytes = max_key_bytes
        self._num_bytes = 0
        self._by_owner: Counter[str] = Counter()

    @contextmanager
    def lease(self, owner: str) -> Iterator[BodyLease]:
        """Hold nothing at first; give everything back when the block ends."""
        lease = BodyLease(self, owner)
        try:
            yield lease
        finally:
            self._give_back(owner, lease.num_bytes)

    def take(self, owner: str, num_bytes: int) -> None:
        """Count bytes of a key. Raises Overloaded where they do not fit."""
        if self._by_owner[owner] + num_bytes > self._max_key_bytes:
            rule = f"the bodies of your open requests hold more than {self._max_key_bytes} bytes, which is the limit"
            raise Overloaded(rule, retry_after_s=RETRY_S)
        if self._num_bytes + num_bytes > self._max_bytes:
            rule = f"the bodies of all open requests hold more than {self._max_bytes} bytes, which is the limit"
            raise Overloaded(rule, retry_after_s=RETRY_S)
        self._by_owner[owner] += num_bytes
        self._num_bytes += num_bytes
        BODY_BYTES.set(self._num_bytes)

    def _give_back(self, owner: str, num_bytes: int) -> None:
        self._by_owner[owner] -= num_bytes
        self._num_bytes -= num_bytes
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        BODY_BYTES.set(self._num_bytes)
