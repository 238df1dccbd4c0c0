"""Images from bytes that anyone may have sent: the bytes decide what they are, the header decides what they cost."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from services.vision.limits import MediaLimits, refusal

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What Pillow raises for files that are damaged in one way or another.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, struct.error, zlib.error)
MAX_REASON_CHARS = 200


def open_image(data: bytes, limits: MediaLimits) -> Image.Image:
    """The first frame as RGB: transparency is dropped and EXIF is not applied, as in the released processor.

    Raises InvalidRequest, before pixels are allocated, for what is no image of a known format or above the caps.
    """
    with _refusing():
        limits.check("max_image_pixels", _webp_pixels(data), "pixels")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    limits.check("max_image_pixels", image.width * image.height, "pixels")
    if image.width == 0 or image.height == 0:
        raise refusal(f"the image has {image.width} x {image.height} pixels")
    with _refusing():
        image.load()
        # A conversion to the same mode would be a copy.
        return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def _refusing() -> Iterator[None]:
    """Pillow's complaints as InvalidRequest."""
    try:
        yield
    except UnidentifiedImageError:
        raise refusal("the data is no image: PNG, JPEG, WebP, GIF and BMP are accepted") from None
    except Image.DecompressionBombError as error:
        raise refusal(f"{error!s:.{MAX_REASON_CHARS}} (max_image_pixels)") from None
    except DAMAGE as error:
        raise refusal(f"the image is damaged: {str(error) or type(error).__name__:.{MAX_REASON_CHARS}}") from None


def _webp_pixels(data: bytes) -> int:
    """Canvas of a WebP file, 0 for other files: Pillow allocates it when it opens the file, before it can be asked."""
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
