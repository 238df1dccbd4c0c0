"""Sampled frames of a video and their times, which follow from presentation times and visible frames, not headers."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from services.runtime.errors import InvalidRequest
from services.vision.grid import MediaConfig
from services.vision.limits import MediaLimits
from services.vision.timeline import timeline_of
from services.vision.videos import decode_video, plan_video
from tests.services.vision.hostile import animated, picture, saved, video

CONFIG, LIMITS = MediaConfig(), MediaLimits()


def decoded(data, *, repair=True):
    """Return the texts of the chunks, and the frames of all chunks in order."""
    plan = plan_video(data, LIMITS, CONFIG, repair=repair)
    frames = np.concatenate(list(decode_video(data, plan, LIMITS, CONFIG)))
    return [chunk.prompt_text for chunk in plan.chunks], frames[:, : plan.size.height, : plan.size.width], plan


def levels(frames):
    return frames.mean(axis=(1, 2, 3))


def timed(times_ms, *, container="webm", codec="libvpx", level=lambda index: index):
    """Make a video whose frame i is shown at times_ms[i]; in WebM the declared rate then disagrees."""
    data = io.BytesIO()
    with av.open(data, "w", format=container) as output:
        stream = output.add_stream(codec, rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 1_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level(index) % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return data.getvalue()


def trimmed(start_s, num_frames=129, fps=30):
    """Make a clip cut without re-encoding: it begins at a key frame, and an MP4 edit list hides the first frames."""
    whole = video(
        num_frames,
        fps=fps,
        codec="libx264",
        size=(128, 96),
        gop=300,
        pixels=lambda i: np.full((96, 128, 3), i, np.uint8),
    )
    data = io.BytesIO()
    how = {"use_editlist": "1", "avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(whole)) as source, av.open(data, "w", format="mp4", options=how) as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        shift = int(start_s / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                output.mux(packet)
    return data.getvalue()


def test_a_browser_recording_is_as_long_as_its_times_say():
    """6 s at 25 frames a second, where the track declares 1,000 or no rate, give 12 frames at 2 a second."""
    data = timed([40 * index for index in range(150)])
    texts, frames, plan = decoded(data)
    assert plan.timeline.fps == pytest.approx(25.0)
    assert [len(chunk.frame_ids) for chunk in plan.chunks] == [4, 4, 4]
    assert texts[0] == "00:00:00.000" and texts[2].startswith("00:00:04.3")
    assert np.abs(levels(frames) - np.linspace(0, 149, 12).round()).max() < 6


def test_frames_at_irregular_times_are_stamped_with_them():
    """The first of 31 frames lasts 20 s, so the fifth is shown at 20.1 s, not at its place at the average rate."""
    texts, _, plan = decoded(timed([0, *[20_000 + 33 * index for index in range(30)]]))
    assert plan.chunks[1].frame_ids[0] == 4
    assert texts[1] == "00:00:20.099"


def test_a_trimmed_clip_shows_its_visible_frames_only():
    _, frames, plan = decoded(trimmed(2.7))
    assert len(plan.timeline.times) == 48  # those from 2.7 s on, of 129
    assert plan.timeline.fps == pytest.approx(30.0)
    assert [len(chunk.frame_ids) for chunk in plan.chunks] == [3]
    assert np.abs(levels(frames) - [81, 104, 128]).max() < 6


def test_a_clip_that_begins_between_key_frames_is_not_damaged():
    whole = video(
        60,
        fps=10,
        container="mpegts",
        codec="mpeg2video",
        gop=20,
        pixels=lambda i: np.full((48, 64, 3), 2 * i, np.uint8),
    )
    packets = len(whole) // 188
    data = whole[188 * (packets // 10) :]
    _, frames, _ = decoded(data)
    assert abs(levels(frames)[-1] - 118) < 8


@pytest.mark.parametrize(
    "turn, size, brightest",
    [
        pytest.param({"degrees": 0}, (64, 48), (0, 0), id="upright"),
        pytest.param({"degrees": -90}, (48, 64), (0, 1), id="clockwise"),
        pytest.param({"degrees": 90}, (48, 64), (1, 0), id="anticlockwise"),
        pytest.param({"degrees": 180}, (64, 48), (1, 1), id="upside-down"),
        pytest.param({"degrees": 0, "hflip": True}, (64, 48), (0, 1), id="mirrored"),
    ],
)
@pytest.mark.parametrize("container, codec", [("mp4", "mpeg4"), ("matroska", "mpeg4")])
def test_a_phone_video_is_turned(container, codec, turn, size, brightest):
    quarter = np.zeros((48, 64, 3), np.uint8)
    quarter[:24, :32] = 255
    data = video(4, container=container, codec=codec, rotation=turn, pixels=lambda _: quarter)
    _, frames, plan = decoded(data)
    assert (plan.size.width, plan.size.height) == size
    height, width = frames.shape[1] // 2, frames.shape[2] // 2
    quarters = [[frames[0, y : y + height, x : x + width].mean() for x in (0, width)] for y in (0, height)]
    assert np.unravel_index(np.argmax(quarters), (2, 2)) == brightest
    _, _, as_stored = decoded(data, repair=False)
    assert (as_stored.size.width, as_stored.size.height) == (64, 48)


@pytest.mark.parametrize(
    "container, codec",
    [
        ("mp4", "mpeg4"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg2video"),
        ("mpeg", "mpeg2video"),
        ("asf", "mpeg4"),
        ("flv", "flv1"),
        ("ogg", "libvpx"),
        ("nut", "mpeg4"),
    ],
)
def test_every_container_that_opens_is_accepted(container, codec):
    data = video(20, fps=25 if codec == "mpeg2video" else 10, container=container, codec=codec)
    texts, frames, plan = decoded(data)
    assert texts == ["00:00:00.000"] and len(frames) == (2 if codec == "mpeg2video" else 4)
    assert len(plan.timeline.times) in (19, 20)


def test_animations_and_pictures_are_videos_too():
    assert len(decoded(animated("GIF", duration=500))[1]) == 3
    assert len(decoded(saved(picture(), "PNG"))[1]) == 1


def test_a_playlist_opens_nothing(tmp_path):
    (tmp_path / "a.mp4").write_bytes(video())
    for text in (
        "ffconcat version 1.0\nfile '{}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    ):
        with pytest.raises(InvalidRequest, match="cannot be opened as a video"):
            plan_video(text.format(tmp_path / "a.mp4").encode(), LIMITS, CONFIG, repair=True)


@pytest.mark.parametrize(
    "stamps, declared, times, fps",
    [
        pytest.param([0, 40, 80], 25.0, [0.0, 0.04, 0.08], 25.0, id="agreed"),
        pytest.param([0, 33, 67, 100], 29.97, [0.0, 0.033, 0.067, 0.1], 29.97, id="agreed-but-for-milliseconds"),
        pytest.param([0, 40, 80], 1000.0, [0.0, 0.04, 0.08], 25.0, id="contradicted"),
        pytest.param([0, 40, 80], None, [0.0, 0.04, 0.08], 25.0, id="undeclared"),
        pytest.param([80, 0, 40], None, [0.0, 0.04, 0.08], 25.0, id="in-decoding-order"),
        pytest.param([5000, 5500], 2.0, [0.0, 0.5], 2.0, id="late-start"),
        pytest.param([None, None], 4.0, [0.0, 0.25], 4.0, id="no-stamps"),
        pytest.param([7], None, [0.0], 1.0, id="one-frame"),
    ],
)
def test_timelines(stamps, declared, times, fps):
    timeline = timeline_of(stamps, 0.001, declared)
    assert timeline.times == pytest.approx(times) and timeline.fps == pytest.approx(fps)


def test_neither_stamps_nor_rate():
    assert timeline_of([None, None], 0.001, None) is None
