"""How far a process has loaded its weights, as its log says."""

from dataclasses import dataclass

from services.local.cluster_log import LogRecord
from services.runtime.liveness import LOADING


@dataclass(frozen=True)
class Loading:
    """Bytes read so far, and about how many there are."""

    loaded_bytes: int
    expected_bytes: int

    def __str__(self) -> str:
        return f"{min(100, 100 * self.loaded_bytes // self.expected_bytes)} %"


def loading_of(record: LogRecord) -> Loading | None:
    """What a log record says about loading; None: nothing."""
    loaded, expected = (record.fields.get(name) for name in ("bytes_loaded", "bytes_expected"))
    if record.message == LOADING and isinstance(loaded, int) and isinstance(expected, int) and expected > 0:
        return Loading(loaded, expected)
    return None
