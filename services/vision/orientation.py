"""The orientation of images and videos: eight orientations with EXIF's numbers, 1 is upright."""

from collections.abc import Mapping
from typing import cast

import numpy as np
from av import VideoFrame
from av.buffer import Buffer
from av.sidedata.sidedata import Type
from PIL import Image

UPRIGHT = 1
ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Rows (a, b) and (c, d) of a display matrix, rounded: a point goes from (x, y) to (a x + c y, b x + d y), y downwards.
_OF_MATRIX = {
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
_MATRIX_ONE = 1 << 16


def image_orientation(image: Image.Image) -> int:
    """Return the orientation in EXIF; upright if it cannot be read, because a picture is valid without EXIF."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 - the parser raises whatever it meets in bytes that anyone may have sent
        return UPRIGHT
    return value if value in _TURNS else UPRIGHT


def frame_orientation(frame: VideoFrame) -> int:
    """Return the orientation in the display matrix, which phones write instead of rotating the frames."""
    found = cast(Mapping[Type, Buffer], frame.side_data)  # its type stub has other keys
    try:
        matrix = bytes(found[Type.DISPLAYMATRIX])
    except KeyError:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5] / _MATRIX_ONE
    return _OF_MATRIX.get((round(a), round(b), round(c), round(d)), UPRIGHT)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Return the picture in upright orientation."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
