"""Hostile and odd files: each is refused with a reason or has the documented result, in bounded memory."""

import asyncio
import io
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.runtime.errors import InvalidRequest
from services.vision.decoder_process import DecoderOptions
from services.vision.decoders import DecoderPool
from services.vision.grid import MediaConfig, frame_size
from services.vision.limits import MediaLimits
from services.vision.png import without_text
from services.vision.preprocess import fit
from tests.services.vision.hostile import (
    animated,
    bmp_header,
    chunk,
    gif_header,
    jpeg_header,
    picture,
    png,
    png_header,
    saved,
    video,
    webp_canvas,
)

LIMITS = MediaLimits(max_video_frames=50)
MEMORY_BYTES = 1 << 30
# Measured: a PNG with 81 million pixels, the most that the caps admit, takes 0.5 GB at its peak.
PEAK_BYTES = 700 << 20

PNG = saved(picture(), "PNG")
BOMB = zlib.compress(bytes(64 << 20), 1)
NO_IMAGE, DAMAGED, PIXELS = "the data is not an image in PNG", "the image is damaged", "max_image_pixels"
NO_VIDEO = "the file cannot be opened as a video"

REFUSED_IMAGES = {
    "empty": (b"", NO_IMAGE),
    "random": (bytes(range(256)) * 40, NO_IMAGE),
    "html": (b"<html><img src='a.png'></html>", NO_IMAGE),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NO_IMAGE),
    "tiff": (saved(picture(), "TIFF"), NO_IMAGE),
    "ico": (saved(picture(), "ICO"), NO_IMAGE),
    "pdf": (saved(picture(), "PDF"), NO_IMAGE),
    "eps": (saved(picture(), "EPS"), NO_IMAGE),
    "video-as-image": (video(), NO_IMAGE),
    "png-without-width": (png_header(0, 5), "its header cannot be read"),
    "bmp-without-size": (bmp_header(0, 0), "its header cannot be read"),
    "png-cut-in-header": (PNG[:20], DAMAGED),
    "png-cut-in-data": (PNG[:-60], DAMAGED),
    "png-flipped-byte": (PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], DAMAGED),
    "jpeg-cut": (saved(picture(400, 400), "JPEG")[:1500], DAMAGED),
    "gif-cut": (animated("GIF")[:60], DAMAGED),
    "webp-cut": (saved(picture(), "WEBP")[:60], DAMAGED),
    "png-claims-3.6-billion-pixels": (png_header(60000, 60000), PIXELS),
    "png-claims-a-negative-size": (png_header(2**31 + 5, 1), PIXELS),
    "png-bomb-of-120-million-pixels": (lambda: png(20000, 6000), PIXELS),
    "jpeg-claims-4-billion-pixels": (jpeg_header(65500, 65500), PIXELS),
    "gif-claims-4-billion-pixels": (gif_header(65535, 65535), PIXELS),
    "bmp-claims-2^60-pixels": (bmp_header(2**30, 2**30), PIXELS),
    "webp-claims-268-million-pixels": (webp_canvas(16384, 16384), PIXELS),
}

REFUSED_VIDEOS = {
    "empty": (b"", NO_VIDEO),
    "random": (bytes(range(256)) * 40, NO_VIDEO),
    "playlist-of-a-local-file": (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", NO_VIDEO),
    "list-of-local-files": (b"ffconcat version 1.0\nfile /etc/passwd\n", NO_VIDEO),
    "html": (b"<html><video src='a.mp4'></html>", NO_VIDEO),
    "cut-before-its-index": (video()[:400], NO_VIDEO),
    "header-and-zeros": (video()[:48] + bytes(5000), NO_VIDEO),
    "sound-only": (video(audio_only=True), "no video stream"),
    "without-frames": (video(0, container="avi"), "the video has no frames"),
    "too-long": (video(3, fps=Fraction(1, 1000)), "max_video_s"),
    "too-many-frames": (video(60, fps=50), "max_video_frames"),
    "too-large-frames": (lambda: video(1, size=(4112, 2320)), "max_frame_pixels"),
}


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    return saved(picture(64, 40), "JPEG", exif=exif, quality=95)


def hidden():
    """Return a picture that is transparent over its blue part."""
    image = Image.new("RGBA", (30, 30), (0, 0, 255, 0))
    return saved(image, "PNG")


# Without repair: Pillow's picture, as in the released processor, and the colour at its corner.
SEEN_IMAGES = {
    "100000-x-1": (png(100000, 1), (0, 0, 0)),
    "1-x-100000": (png(1, 100000), (0, 0, 0)),
    "81-million-pixels-in-240-kB": (lambda: png(9000, 9000), (0, 0, 0)),
    "text-bomb-beside-the-picture": (png(20, 20, before=chunk(b"zTXt", b"a\0\0" + BOMB)), (0, 0, 0)),
    "profile-bomb-beside-the-picture": (png(20, 20, before=chunk(b"iCCP", b"a\0\0" + BOMB)), (0, 0, 0)),
    "png-without-end": (PNG[:-12], (200, 30, 60)),
    "png-with-rows-missing": (png(40, 40, rows=10), (0, 0, 0)),
    "animated-gif-is-its-first-frame": (animated("GIF"), (255, 0, 0)),
    "endless-gif-is-its-first-frame": (animated("GIF", loop=0, duration=1), (255, 0, 0)),
    "animated-png-is-its-first-frame": (animated("PNG"), (255, 0, 0)),
    "animated-webp-is-its-first-frame": (animated("WEBP", lossless=True), (255, 0, 0)),
    "webp": (saved(picture(), "WEBP", lossless=True), (200, 30, 60)),
    "bmp": (saved(picture(), "BMP"), (200, 30, 60)),
    "cmyk": (saved(picture(mode="CMYK"), "JPEG"), None),
    "progressive": (saved(picture(), "JPEG", progressive=True), None),
    "exif-is-not-applied": (rotated(), None),
    "alpha-is-dropped": (hidden(), (0, 0, 255)),
    "16-bit-saturates": (saved(Image.new("I;16", (30, 30), 300), "PNG"), (255, 255, 255)),
    "palette-with-transparency": (saved(picture(mode="P"), "PNG", transparency=0), None),
    "1-bit": (saved(picture(mode="1"), "PNG"), None),
    "grey-with-alpha": (saved(picture(mode="LA"), "PNG"), None),
}


class Outcomes:
    """All files decoded once, by one decoder process in sequence."""

    def __init__(self):
        asyncio.run(self._decode_all())

    async def _decode_all(self):
        pool = DecoderPool(1, DecoderOptions(LIMITS, MediaConfig(), MEMORY_BYTES, cpu_s=60, repair=False))
        try:
            self.images = {name: await decode(pool, "image", data) for name, (data, _) in REFUSED_IMAGES.items()}
            self.images |= {name: await decode(pool, "image", data) for name, (data, _) in SEEN_IMAGES.items()}
            self.videos = {name: await decode(pool, "video", data) for name, (data, _) in REFUSED_VIDEOS.items()}
            process = pool._decoders[0]._process
            self.peak_bytes = peak_bytes(process.pid)
        finally:
            await pool.close()


def peak_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def made(data):
    """Return bytes, or call a function that makes them, so that large files are made during the test."""
    return data() if callable(data) else data


async def decode(pool, kind, data):
    try:
        async with pool.lease() as decoder:
            plan = await decoder.plan(kind, made(data))
            return plan, [await decoder.chunk() for _ in plan.chunks]
    except InvalidRequest as error:
        return error


@pytest.fixture(scope="module")
def outcomes():
    return Outcomes()


@pytest.mark.parametrize("name", REFUSED_IMAGES)
def test_image_is_refused_with_the_reason(outcomes, name):
    assert isinstance(outcomes.images[name], InvalidRequest), outcomes.images[name]
    assert REFUSED_IMAGES[name][1] in outcomes.images[name].message


@pytest.mark.parametrize("name", REFUSED_VIDEOS)
def test_video_is_refused_with_the_reason(outcomes, name):
    assert isinstance(outcomes.videos[name], InvalidRequest), outcomes.videos[name]
    assert REFUSED_VIDEOS[name][1] in outcomes.videos[name].message


@pytest.mark.parametrize("name", SEEN_IMAGES)
@pytest.mark.slow
def test_image_is_what_pillow_makes_of_it(outcomes, name):
    data, corner = SEEN_IMAGES[name]
    plan, (pixels,) = outcomes.images[name]
    image = Image.open(io.BytesIO(without_text(made(data))))
    size = frame_size(image.width, image.height, 16384, MediaConfig())
    assert (plan.grid_h, plan.grid_w, plan.num_tokens) == (size.grid_h, size.grid_w, size.num_tokens)
    assert (pixels[0] == fit(image.convert("RGB"), size, 14)).all()
    assert corner is None or tuple(pixels[0, 0, 0].tolist()) == corner


def test_memory_stays_under_the_cap(outcomes):
    """One process survived all files, and took little memory, although the bombs would unpack to 10 GB."""
    assert outcomes.peak_bytes < PEAK_BYTES


def test_the_decoder_process_is_light():
    """It does not load torch, so it starts quickly, and an attacker in a decoder finds little."""
    code = (
        "import sys, services.vision.decoder_process as d; sys.exit('torch' in sys.modules or 'redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def one(data, kind="image", **changes):
    options = {
        "limits": LIMITS,
        "config": MediaConfig(),
        "memory_bytes": MEMORY_BYTES,
        "cpu_s": 60.0,
        "repair": False,
        **changes,
    }
    pool = DecoderPool(1, DecoderOptions(**options))
    try:
        # The decoder continues with a second file after any outcome of the first.
        return await decode(pool, kind, data), await decode(pool, "image", PNG)
    finally:
        await pool.close()


@pytest.mark.slow
async def test_a_picture_that_needs_more_memory_than_there_is_names_the_cap():
    refused, (plan, _) = await one(png(9000, 9000), memory_bytes=400 << 20)
    assert "decoder_memory_bytes" in refused.message
    assert plan.num_tokens == 6


@pytest.mark.slow
async def test_decoding_that_takes_too_long_ends():
    refused, (plan, _) = await one(png(9000, 9000), cpu_s=0.3)
    assert "decode_s" in refused.message
    assert plan.num_tokens == 6


async def test_a_file_left_in_the_middle_does_not_spoil_the_next():
    pool = DecoderPool(1, DecoderOptions(LIMITS, MediaConfig(), MEMORY_BYTES, 60, repair=False))
    try:
        async with pool.lease() as decoder:
            assert len((await decoder.plan("video", video(40))).chunks) == 4
        _, (pixels,) = await decode(pool, "image", PNG)
        assert tuple(pixels[0, 0, 0].tolist()) == (200, 30, 60)
    finally:
        await pool.close()


async def test_frames_of_a_video_are_those_of_the_plan():
    pool = DecoderPool(1, DecoderOptions(LIMITS, MediaConfig(), MEMORY_BYTES, 60, repair=False))
    try:
        for container, codec in (("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4"), ("matroska", "mpeg4")):
            plan, chunks = await decode(
                pool, "video", video(12, fps=4, size=(80, 50), container=container, codec=codec)
            )
            # 12 frames at 4 per second: 6 are sampled, 0 2 4 7 9 11.
            assert [chunk.num_frames for chunk in plan.chunks] == [4, 2]
            assert [chunk.prompt_text for chunk in plan.chunks] == ["00:00:00.000", "00:00:02.250"]
            levels = np.concatenate([pixels[:, :50, :80].mean(axis=(1, 2, 3)) for pixels in chunks])
            assert np.abs(levels - [0, 40, 80, 140, 180, 220]).max() < 4, container
    finally:
        await pool.close()


async def test_a_process_that_ended_between_two_files_is_replaced():
    pool = DecoderPool(1, DecoderOptions(LIMITS, MediaConfig(), MEMORY_BYTES, cpu_s=60, repair=False))
    data = saved(picture(), "PNG")
    try:
        before, _ = await decode(pool, "image", data)
        process = pool._decoders[0]._process
        # Its pipe breaks before its end is noticed.
        process.stdin.close()
        after, _ = await decode(pool, "image", data)
        assert after == before
        assert pool._decoders[0]._process is not process
    finally:
        await pool.close()
