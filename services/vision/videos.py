"""Videos from bytes that anyone may have sent: counted first, then only the frames of the plan are kept."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import Image

from services.vision.grid import FrameSize, MediaConfig, frame_size
from services.vision.limits import MediaLimits, refusal
from services.vision.preprocess import Pixels, fit
from services.vision.sampling import ChunkPlan, plan_chunks

MAX_REASON_CHARS = 200
# Of the frames that the container holds: what is missing at the end is shown as its last frame, as players do.
MIN_DECODED = 0.9

Frames: TypeAlias = Iterator[tuple[int, Image.Image]]


@dataclass(frozen=True)
class VideoPlan:
    """What will be decoded: chunks of frames that all get one size."""

    size: FrameSize
    chunks: list[ChunkPlan]


def plan_video(data: bytes, limits: MediaLimits, config: MediaConfig) -> VideoPlan:
    """Reads the whole container without decoding more than its first frame. Raises InvalidRequest above any cap."""
    with _opened(data) as (container, stream):
        fps = _frames_per_second(stream)
        duration_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        limits.check("max_video_s", duration_s, "seconds")
        limits.check("max_frame_pixels", stream.codec_context.width * stream.codec_context.height, "pixels in a frame")
        num_frames = 0
        for packet in container.demux(stream):
            num_frames += packet.size > 0
            limits.check("max_video_frames", num_frames, "frames or more")
    if num_frames == 0:
        raise refusal("the video has no frames")
    limits.check("max_video_s", num_frames / fps, "seconds")
    with _opened(data) as (container, stream):
        first = next((frame for frame in container.decode(stream)), None)
        if first is None:
            raise refusal("no frame of the video can be decoded")
        limits.check("max_frame_pixels", first.width * first.height, "pixels in a frame")
        size = frame_size(first.width, first.height, config.frame_patches, config)
    chunks = plan_chunks(num_frames, fps, config)
    limits.check("max_tokens", size.num_tokens * len(chunks), "tokens")
    return VideoPlan(size, chunks)


def decode_video(data: bytes, plan: VideoPlan, limits: MediaLimits, config: MediaConfig) -> Iterator[Pixels]:
    """The pixels of each chunk in turn, [frames, height, width, 3]; one chunk is in memory at a time."""
    with _opened(data) as (container, stream):
        frames = _frames(container, stream, limits)
        index, image = next(frames)
        for chunk in plan.chunks:
            pixels: list[Pixels] = []
            for wanted in chunk.frame_ids:
                while index < wanted:
                    following = next(frames, None)
                    if following is None:
                        _check_complete(index + 1, plan.chunks[-1].frame_ids[-1] + 1)
                        break
                    index, image = following
                pixels.append(fit(image, plan.size, config.patch_size))
            yield np.stack(pixels)


def _frames(container: InputContainer, stream: VideoStream, limits: MediaLimits) -> Frames:
    for index, frame in enumerate(container.decode(stream)):
        limits.check("max_frame_pixels", frame.width * frame.height, "pixels in a frame")
        yield index, Image.fromarray(frame.to_ndarray(format="rgb24"))


def _check_complete(num_decoded: int, num_frames: int) -> None:
    if num_decoded < MIN_DECODED * num_frames:
        raise refusal(f"the video is damaged: only {num_decoded} of {num_frames} frames can be decoded")


def _frames_per_second(stream: VideoStream) -> float:
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate
    if not rate or rate <= 0:
        raise refusal("the video does not say how many frames it has in a second")
    return float(rate)


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; whatever is wrong with them is InvalidRequest."""
    name = _container_format(data)
    if name is None:
        raise refusal("the data is no video: MP4, MOV, 3GPP, WebM, Matroska, AVI, FLV, MPEG and WMV are accepted")
    try:
        # A fixed format and no protocols: a playlist in disguise must not make us read other files or the network.
        with av.open(io.BytesIO(data), "r", format=name, options={"protocol_whitelist": "none"}) as container:
            if not container.streams.video:
                raise refusal("the file has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FFmpegError as error:
        raise refusal(f"the video is damaged: {error.strerror or error:.{MAX_REASON_CHARS}}") from None


def _container_format(data: bytes) -> str | None:
    """libav's name of the container, from the first bytes."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "avi"
    starts = {
        b"\x1a\x45\xdf\xa3": "matroska",
        b"FLV": "flv",
        b"\x00\x00\x01\xba": "mpeg",
        b"\x00\x00\x01\xb3": "mpegvideo",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    }
    return next((name for start, name in starts.items() if data.startswith(start)), None)
