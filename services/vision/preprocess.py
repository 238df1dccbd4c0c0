"""Turns a picture into patches with the same bits as the released processor (VISION.md). No torch here."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.vision.grid import FrameSize

Pixels = NDArray[np.uint8]
CHANNELS = 3


def fit(image: Image.Image, size: FrameSize, patch_size: int) -> Pixels:
    """Resize the picture (bicubic) and pad it with black on the right and below: [height, width, 3]."""
    frame = np.zeros((size.grid_h * patch_size, size.grid_w * patch_size, CHANNELS), dtype=np.uint8)
    resized = image.resize((size.width, size.height), resample=Image.Resampling.BICUBIC)
    frame[: size.height, : size.width] = np.asarray(resized)
    return frame


def patchify(frames: Pixels, patch_size: int) -> Pixels:
    """Cut [frames, height, width, 3] into [patches, 3, patch, patch], frame by frame and row by row."""
    count, height, width, channels = frames.shape
    rows, columns = height // patch_size, width // patch_size
    grid = frames.reshape(count, rows, patch_size, columns, patch_size, channels)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 5, 2, 4)).reshape(-1, channels, patch_size, patch_size)


def value_table() -> NDArray[np.float32]:
    """Return the input for each of the 256 pixel values: x / 255 rounded to float32, minus 0.5, times 2."""
    scaled = (np.arange(256, dtype=np.float64) / 255.0).astype(np.float32)
    return (scaled - np.float32(0.5)) * np.float32(2.0)
