"""Hostile files, and their documented outcomes."""

import io
import struct
import zlib
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw


def saved(image, kind, **how):
    data = io.BytesIO()
    image.save(data, kind, **how)
    return data.getvalue()


def picture(width=64, height=40, mode="RGB"):
    image = Image.new("RGB", (width, height), (200, 30, 60))
    ImageDraw.Draw(image).ellipse((2, 2, width - 2, height - 2), fill=(10, 220, 90))
    return image.convert(mode)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *, before=b"", rows=None, depth=8, colour=2):
    """Make a PNG of zeros; with `rows` below its height it ends too early."""
    line = b"\0" * (1 + width * {0: 1, 2: 3}[colour])
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(line) for _ in range(height if rows is None else rows)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png_header(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg_header(width, height):
    """Make a JPEG whose frame header claims another size."""
    data = bytearray(saved(picture(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_header(width, height):
    data = bytearray(saved(picture(), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_header(width, height):
    data = bytearray(saved(picture(), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_canvas(width, height):
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (width - 1).to_bytes(3, "little")
    body += (height - 1).to_bytes(3, "little") + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def frames_of(colours, size=(64, 40)):
    return [Image.new("RGB", size, colour) for colour in colours]


def animated(kind, **how):
    first, *others = frames_of([(255, 0, 0), (0, 255, 0), (0, 0, 255)])
    return saved(first, kind, save_all=True, append_images=others, **how)


def video(
    num_frames=10,
    *,
    size=(64, 48),
    fps=5,
    container="mp4",
    codec="mpeg4",
    audio_only=False,
    pixels=None,
    rotation=None,
    gop=None,
    **options,
):
    """Make a small video whose frame i has the grey level 20 * i, or the pixels of `pixels(i)`."""
    data = io.BytesIO()
    with av.open(data, "w", format=container, options=options) as output:
        if audio_only:
            stream = output.add_stream("aac" if container == "mp4" else "libopus", rate=48000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48000
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        else:
            stream = output.add_stream(codec, rate=Fraction(fps))
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            if gop is not None:
                stream.codec_context.gop_size = gop
                stream.options = {"sc_threshold": "0"}
            if rotation is not None:
                turn = dict(rotation)
                stream.set_display_rotation(turn.pop("degrees"), **turn)
            output.start_encoding()
            for index in range(num_frames):
                level = np.full((size[1], size[0], 3), (20 * index) % 256, np.uint8)
                frame = av.VideoFrame.from_ndarray(level if pixels is None else pixels(index), format="rgb24")
                for packet in stream.encode(frame):
                    output.mux(packet)
            for packet in stream.encode(None):
                output.mux(packet)
    return data.getvalue()
