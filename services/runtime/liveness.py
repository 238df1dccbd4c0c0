"""Whether this process is alive: it makes progress in loading, or its event loop turns."""

import logging
import time
from typing import Final

from services.runtime.metrics import LOAD_BYTES, LOAD_EXPECTED_BYTES

log = logging.getLogger(__name__)

LOADING: Final = "loading weights"
LOG_S: Final = 5.0
# Time for the largest tensor of K2.6, 2.3 GB, from the slowest usable disk (10 MB/s).
LOAD_STALL_S: Final = 300.0
LOOP_STALL_S: Final = 60.0
BEAT_S: Final = 1.0


class Liveness:
    """The progress of a process, for probes and supervisors. Written by its main thread, read by any.

    A start has no time limit, because it depends on the size and the disk; it counts as dead after LOAD_STALL_S without
    progress. Once the event loop turns, the process counts as dead if the loop has not turned for LOOP_STALL_S.
    """

    def __init__(self) -> None:
        self._loaded_bytes = 0
        self._expected_bytes = 0
        self._is_running = False
        self._began_at = self._moved_at = time.monotonic()
        self._logged_at = 0.0

    def expect(self, num_bytes: int) -> None:
        """Begin to load; the number of bytes is an estimate."""
        self._expected_bytes += num_bytes
        self._began_at = self._moved_at = time.monotonic()
        LOAD_EXPECTED_BYTES.set(self._expected_bytes)
        self._log()

    def add_loaded(self, num_bytes: int) -> None:
        """Count further bytes of weights that have been read."""
        self._loaded_bytes += num_bytes
        self._moved_at = time.monotonic()
        LOAD_BYTES.inc(num_bytes)
        if not self._is_running and self._moved_at - self._logged_at > LOG_S:
            self._log()

    def beat(self) -> None:
        """Note that the event loop turns; called every BEAT_S."""
        self._is_running = True
        self._moved_at = time.monotonic()

    @property
    def is_alive(self) -> bool:
        """Whether there was progress lately."""
        return time.monotonic() - self._moved_at < (LOOP_STALL_S if self._is_running else LOAD_STALL_S)

    def _log(self) -> None:
        self._logged_at = time.monotonic()
        seconds = self._logged_at - self._began_at
        log.info(
            LOADING,
            extra={
                "bytes_loaded": self._loaded_bytes,
                "bytes_expected": self._expected_bytes,
                "bytes_per_s": round(self._loaded_bytes / seconds) if seconds > 1 else None,
            },
        )


LIVENESS: Final = Liveness()
"""Of this process, as the metrics are."""
