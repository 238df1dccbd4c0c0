"""The time to a request's first token, by part."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.metrics import FIRST_TOKEN_PART_SECONDS, FIRST_TOKEN_SECONDS
from protos.attention_pb2 import FirstTokenTimes

PARTS = ("vision", "render", "queue", "fetch", "prefill", "handoff")


class FirstToken:
    """Seconds by part, until the first token is there. Owned by its request.

    Attempts that failed count where they waited; what they computed in vain is in no part but "other".
    """

    def __init__(self) -> None:
        self._parts_s = dict.fromkeys(PARTS, 0.0)
        self._is_there = False

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Add the time of the block to a part."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._parts_s[part] += time.monotonic() - began_s

    def add(self, times: FirstTokenTimes) -> None:
        """Add the times that the engine of the first token reports."""
        self._parts_s["queue"] += times.queue_s
        self._parts_s["fetch"] += times.fetch_s
        self._parts_s["prefill"] += times.compute_s
        self._parts_s["handoff"] += times.publish_s

    def arrived(self, seconds: float) -> None:
        """Record the first token, so many seconds after the request. Only the first call counts."""
        if self._is_there:
            return
        self._is_there = True
        FIRST_TOKEN_SECONDS.observe(seconds)
        for part, part_s in self._parts_s.items():
            FIRST_TOKEN_PART_SECONDS.labels(part).observe(part_s)
        FIRST_TOKEN_PART_SECONDS.labels("other").observe(max(0.0, seconds - sum(self._parts_s.values())))
