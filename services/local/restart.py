"""When a process that ended is started again, and when that is given up."""

from collections.abc import Sequence
from dataclasses import dataclass

# What a process ends with when its settings or its checkpoint are at fault: starting it again would change nothing.
REFUSED_TO_START = 2


@dataclass(frozen=True)
class RestartPolicy:
    """A process that served is started again at once, then after longer and longer pauses.

    max_crashes        within window_s: given up
    max_start_crashes  before the process served for the first time: given up; something is wrong with the machine
    """

    max_crashes: int = 5
    window_s: float = 30.0
    max_start_crashes: int = 3
    first_pause_s: float = 0.2
    max_pause_s: float = 5.0

    def pause_s(self, crashed_at: Sequence[float], now: float, *, has_served: bool) -> float | None:
        """Seconds to wait before the next start, None to give up.

        crashed_at  monotonic times of all crashes, the one in question included
        """
        if not has_served and len(crashed_at) >= self.max_start_crashes:
            return None
        recent = sum(time > now - self.window_s for time in crashed_at)
        if recent >= self.max_crashes:
            return None
        # The first crash is what a cluster is built to survive; its restart has no pause.
        return 0.0 if recent <= 1 else min(self.first_pause_s * 2 ** (recent - 2), self.max_pause_s)
