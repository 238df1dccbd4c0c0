"""Requests and tokens of each API key, for the metrics."""

from gateway.http.request_context import Meter
from gateway.metrics import KEY_REQUESTS, KEY_TOKENS

# Each is a time series in the monitoring system, also long after its key was taken out of the file.
MAX_KEYS = 1000
OTHERS = "others"


class KeyUsage:
    """Counts by the short name of a key; beyond MAX_KEYS, new keys share one name."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._known: set[str] = set()

    def count(self, owner: str, meter: Meter) -> None:
        """Count a request that is over."""
        if len(self._known) < self._max_keys:
            self._known.add(owner)
        key = owner if owner in self._known else OTHERS
        KEY_REQUESTS.labels(key).inc()
        KEY_TOKENS.labels(key, "prompt").inc(meter.num_prompt_tokens)
        KEY_TOKENS.labels(key, "completion").inc(meter.num_completion_tokens)
