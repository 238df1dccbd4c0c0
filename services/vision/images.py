"""Images from untrusted bytes: the format follows from the bytes, the cost from the header."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from services.vision.limits import MediaLimits, refusal
from services.vision.orientation import image_orientation, turned
from services.vision.png import without_text

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM")
# Exceptions of Pillow for damaged files.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, struct.error, zlib.error)
MAX_REASON_CHARS = 200
GREY_16_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def open_image(data: bytes, limits: MediaLimits, *, repair: bool) -> Image.Image:
    """Return the first frame as RGB.

    repair  show it as browsers do: transparency on white, EXIF orientation applied, 16-bit grey scaled to 8 bits.
            False: as the released processor, which drops transparency, ignores EXIF and cuts grey above 255 to white
    Raises InvalidRequest, before pixels are allocated, for an unknown format or an image above the caps.
    """
    with _refusing(data):
        limits.check("max_image_pixels", _webp_pixels(data), "pixels")
        image = Image.open(io.BytesIO(without_text(data)), formats=FORMATS)
    limits.check("max_image_pixels", image.width * image.height, "pixels")
    if image.width == 0 or image.height == 0:
        raise refusal(f"the image has {image.width} x {image.height} pixels")
    with _refusing(data):
        image.load()
        if repair:
            return turned(_on_white(image), image_orientation(image))
        # A conversion to the same mode would be a copy.
        return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Return the picture as RGB on white, with all its grey levels."""
    if image.mode in GREY_16_BITS:
        levels = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
        seen = levels != image.info["transparency"] if "transparency" in image.info else None
        alpha = None if seen is None else Image.fromarray(np.where(seen, np.uint8(255), np.uint8(0)))
        image = grey
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    else:
        alpha = None
    if alpha is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=alpha)
    return white


@contextmanager
def _refusing(data: bytes) -> Iterator[None]:
    """Turn Pillow's errors into InvalidRequest."""
    try:
        yield
    except UnidentifiedImageError:
        if data.startswith(STARTS):
            raise refusal("the image is damaged: its header cannot be read") from None
        raise refusal("the data is not an image in PNG, JPEG, WebP, GIF or BMP") from None
    except Image.DecompressionBombError as error:
        raise refusal(f"{error!s:.{MAX_REASON_CHARS}} (max_image_pixels)") from None
    except DAMAGE as error:
        raise refusal(f"the image is damaged: {str(error) or type(error).__name__:.{MAX_REASON_CHARS}}") from None


def _webp_pixels(data: bytes) -> int:
    """Return the pixels of a WebP file's canvas, 0 for other files. Pillow allocates it already on opening."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0
    match data[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        case _:
            return 0
    return width * height
