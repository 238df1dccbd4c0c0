"""Presentation times of a video's frames. The frames' stamps count; the header's rate must agree with them."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

# A declared rate within this share of the measured one is used, so that plans equal those of the released processor.
RATE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Timeline:
    """The visible frames of a video.

    stamps  presentation stamp of each frame in ascending order; empty if the container has none
    times   seconds from the first frame, from the stamps or else from the declared rate
    fps     average frames per second
    """

    stamps: Sequence[int]
    times: Sequence[float]
    fps: float

    @property
    def duration_s(self) -> float:
        return max(len(self.times) / self.fps, self.times[-1])

    def index(self, stamp: int | None, previous: int) -> int:
        """Return the index of a decoded frame, from its stamp, else the index after the previous one."""
        return previous + 1 if stamp is None or not self.stamps else bisect_left(self.stamps, stamp)

    def irregular_times(self, tolerance_s: float) -> Sequence[float] | None:
        """Return the times if a frame differs from the average rate by more than this, else None."""
        steady = all(abs(time - index / self.fps) <= tolerance_s for index, time in enumerate(self.times))
        return None if steady else self.times


def timeline_of(stamps: Sequence[int | None], tick_s: float, declared_fps: float | None) -> Timeline | None:
    """Return the timeline of frames with these stamps; None if neither stamps nor header give a rate.

    tick_s  seconds of one unit of the stamps
    """
    known = sorted({stamp for stamp in stamps if stamp is not None})
    if len(stamps) == 1:
        return Timeline(known, [0.0], declared_fps or 1.0)
    if None in stamps or len(known) < 2:
        times = [index / declared_fps for index in range(len(stamps))] if declared_fps else []
        return Timeline([], times, declared_fps) if declared_fps else None
    times = [(stamp - known[0]) * tick_s for stamp in known]
    measured = (len(times) - 1) / times[-1]
    agrees = declared_fps is not None and abs(declared_fps - measured) <= RATE_TOLERANCE * measured
    return Timeline(known, times, declared_fps if agrees and declared_fps else measured)
