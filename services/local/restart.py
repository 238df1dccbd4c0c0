"""The policy of restarts: pauses between them, and their limit."""

from collections.abc import Sequence
from dataclasses import dataclass

# Exit code of a process with bad settings or a bad checkpoint, which a restart would not change.
REFUSED_TO_START = 2


@dataclass(frozen=True)
class RestartPolicy:
    """A process that has served is restarted at once the first time, then after growing pauses.

    max_crashes        crashes within window_s after which it is not restarted
    max_start_crashes  the same before it has served for the first time, because then the machine is at fault
    """

    max_crashes: int = 5
    window_s: float = 30.0
    max_start_crashes: int = 3
    first_pause_s: float = 0.2
    max_pause_s: float = 5.0

    def pause_s(self, crashed_at: Sequence[float], now: float, *, has_served: bool) -> float | None:
        """Return the seconds until the next start, or None for no further start.

        crashed_at  monotonic times of all crashes, the latest included
        """
        if not has_served and len(crashed_at) >= self.max_start_crashes:
            return None
        recent = sum(time > now - self.window_s for time in crashed_at)
        if recent >= self.max_crashes:
            return None
        # No pause after the first crash, which a cluster is built to survive.
        return 0.0 if recent <= 1 else min(self.first_pause_s * 2 ** (recent - 2), self.max_pause_s)
