"""Videos from untrusted bytes: frames are counted first, then decoded, and only those of the plan are kept."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import av
import av.error
import numpy as np
from av import VideoFrame
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image

from services.vision.grid import FrameSize, MediaConfig, frame_size
from services.vision.limits import MediaLimits, refusal
from services.vision.orientation import UPRIGHT, frame_orientation, turned
from services.vision.preprocess import Pixels, fit
from services.vision.sampling import ChunkPlan, plan_chunks
from services.vision.timeline import Timeline, timeline_of

MAX_REASON_CHARS = 200
# Least share of a plan that must be reached; frames missing at the end are replaced by the last one, as players do.
MIN_REACHED = 0.9
# Least share of frames that must be decoded: a clip cut between key frames begins with frames that cannot be.
MIN_DECODED = 0.5


@dataclass(frozen=True)
class VideoPlan:
    """The chunks to decode; all frames get the same size.

    orientation  orientation of the frames, with EXIF's numbers
    """

    size: FrameSize
    chunks: list[ChunkPlan]
    timeline: Timeline
    orientation: int


def plan_video(data: bytes, limits: MediaLimits, config: MediaConfig, *, repair: bool) -> VideoPlan:
    """Read the whole container without decoding more than its first frame. Raises InvalidRequest above any cap.

    repair  rotate the frames as the file's display matrix says
    """
    with _opened(data) as (container, stream):
        context = stream.codec_context
        limits.check("max_frame_pixels", context.width * context.height, "pixels in a frame")
        timeline = _read_timeline(container, stream, limits)
    limits.check("max_video_s", timeline.duration_s, "seconds")
    with _opened(data) as (container, stream):
        first = next(_frames(container, stream, limits), None)
        if first is None:
            raise refusal("no frame of the video can be decoded")
        orientation = frame_orientation(first) if repair else UPRIGHT
        upright = turned(Image.new("1", (first.width, first.height)), orientation)
        size = frame_size(upright.width, upright.height, config.frame_patches, config)
    times = timeline.irregular_times(1 / config.sample_fps)
    chunks = plan_chunks(len(timeline.times), timeline.fps, config, times)
    limits.check("max_tokens", size.num_tokens * len(chunks), "tokens")
    return VideoPlan(size, chunks, timeline, orientation)


def decode_video(data: bytes, plan: VideoPlan, limits: MediaLimits, config: MediaConfig) -> Iterator[Pixels]:
    """Yield the pixels of each chunk, [frames, height, width, 3]; one chunk is in memory at a time."""
    needed = plan.chunks[-1].frame_ids[-1] + 1
    with _opened(data) as (container, stream):
        frames = _frames(container, stream, limits)
        frame, num_decoded = next(frames), 1
        index = plan.timeline.index(frame.pts, -1)
        for chunk in plan.chunks:
            pixels: list[Pixels] = []
            for wanted in chunk.frame_ids:
                while index < wanted:
                    following = next(frames, None)
                    if following is None:
                        if index + 1 < MIN_REACHED * needed:
                            _refuse_incomplete(num_decoded, needed)
                        break
                    frame, num_decoded = following, num_decoded + 1
                    index = plan.timeline.index(frame.pts, index)
                pixels.append(_pixels(frame, plan, config))
            if chunk is plan.chunks[-1] and num_decoded < MIN_DECODED * needed:
                _refuse_incomplete(num_decoded, needed)
            yield np.stack(pixels)


def _pixels(frame: VideoFrame, plan: VideoPlan, config: MediaConfig) -> Pixels:
    image = turned(Image.fromarray(frame.to_ndarray(format="rgb24")), plan.orientation)
    return fit(image, plan.size, config.patch_size)


def _read_timeline(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> Timeline:
    """Read every packet. Frames hidden by an edit list are needed for decoding, but not shown."""
    stamps: list[int | None] = []
    num_packets = 0
    for packet in container.demux(stream):
        num_packets += packet.size > 0
        limits.check("max_video_frames", num_packets, "frames or more")
        if packet.size and not packet.is_discard:
            stamps.append(packet.dts if packet.pts is None else packet.pts)
    if not stamps:
        raise refusal("the video has no frames")
    tick_s, declared = float(stream.time_base or 1), stream.average_rate
    timeline = timeline_of(stamps, tick_s, float(declared) if declared else None)
    if timeline is None:
        raise refusal("the video does not say when its frames are shown")
    return timeline


def _frames(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> Iterator[VideoFrame]:
    """Yield the visible frames in order of presentation, without those that cannot be decoded."""
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            continue
        for frame in decoded:
            assert isinstance(frame, VideoFrame)
            limits.check("max_frame_pixels", frame.width * frame.height, "pixels in a frame")
            yield frame


def _refuse_incomplete(num_decoded: int, needed: int) -> NoReturn:
    raise refusal(f"the video is damaged: only {num_decoded} of {needed} frames can be decoded")


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container and its first video stream; turn any error into InvalidRequest."""
    try:
        container = _open(data)
    except av.error.FFmpegError as error:
        raise refusal(f"the file cannot be opened as a video: {_reason(error)}") from None
    try:
        with container:
            # For libav, the cover picture of a sound track is a video stream.
            streams = [
                stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
            ]
            if not streams:
                raise refusal("the file has no video stream")
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except av.error.FFmpegError as error:
        raise refusal(f"the video is damaged: {_reason(error)}") from None


def _open(data: bytes) -> InputContainer:
    # No protocols, so that a disguised playlist cannot make us read other files or the network.
    return av.open(io.BytesIO(data), "r", options={"protocol_whitelist": "none"}, io_open=_refuse_to_open)


def _refuse_to_open(url: str, _flags: int, _options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"{url} is outside the file that was sent")


def _reason(error: av.error.FFmpegError) -> str:
    return f"{error.strerror or error:.{MAX_REASON_CHARS}}"
