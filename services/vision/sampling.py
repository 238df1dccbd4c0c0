"""Chooses the frames of a video, their chunks, and the text of each chunk in the prompt (VISION.md, "Video")."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from services.vision.grid import MediaConfig


@dataclass(frozen=True)
class ChunkPlan:
    """Frames to encode together, by their index in the file, and the text before them."""

    frame_ids: tuple[int, ...]
    prompt_text: str


def plan_chunks(
    num_frames: int, fps: float, config: MediaConfig, times: Sequence[float] | None = None
) -> list[ChunkPlan]:
    """Plan frames at `sample_fps`, or all frames of a slower video, evenly from the first to the last.

    fps    average frames per second
    times  presentation time of each frame, in seconds; None: at the average rate
    """
    assert num_frames > 0 and fps > 0
    num_sampled = max(round(num_frames * min(config.sample_fps, fps) / fps), 1)
    places = np.linspace(0, num_frames - 1, num_sampled).round().astype(np.int64).tolist()
    starts = range(0, num_sampled, config.chunk_frames)
    chunks = [tuple(places[start : start + config.chunk_frames]) for start in starts]
    return [ChunkPlan(frames, timestamp(frames[0] / fps if times is None else times[frames[0]])) for frames in chunks]


def timestamp(seconds: float) -> str:
    """HH:MM:SS.fff; milliseconds are cut off, not rounded, and a day wraps."""
    milliseconds = int(math.fmod(seconds, 1.0) * 1000)
    whole = datetime.fromtimestamp(math.floor(seconds) % 86_400, tz=UTC)
    return f"{whole:%H:%M:%S}.{milliseconds:03d}"
