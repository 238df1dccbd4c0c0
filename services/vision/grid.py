"""Sizes: what an image or frame is resized to, its patches and its tokens (VISION.md). Only arithmetic."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.checkpoint.config import VisionConfig, read_json_object
from services.checkpoint.config_fields import Fields
from services.runtime.errors import CheckpointError

CONFIG_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class MediaConfig:
    """`media_proc_cfg` of preprocessor_config.json, as far as values differ between checkpoints."""

    patch_size: int = 14
    merge_size: int = 2
    image_patches: int = 16384
    frame_patches: int = 4096
    side_patches: int = 512
    sample_fps: float = 2.0
    chunk_frames: int = 4

    @property
    def unit(self) -> int:
        """Pixels on the side of what becomes one token."""
        return self.patch_size * self.merge_size

    def to_json(self) -> str:
        """The same values for the decoder process and for names of features."""
        return json.dumps(vars(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "MediaConfig":
        return MediaConfig(**json.loads(text))


def load_media_config(folder: Path, vision: VisionConfig) -> MediaConfig:
    """Reads preprocessor_config.json. CheckpointError for anything that is not computed here."""
    file = folder / CONFIG_FILE
    values: dict[str, Any] = read_json_object(file)
    config = Fields(values, file=str(file)).section("media_proc_cfg")
    config.exactly("image_mean", [0.5, 0.5, 0.5])
    config.exactly("image_std", [0.5, 0.5, 0.5])
    config.exactly("fixed_output_tokens", None)
    config.exactly("in_patch_limit_video", None)
    config.exactly("timestamp_mode", "hh:mm:ss.fff")
    config.exactly("patch_size", vision.patch_size)
    if vision.merge_kernel_size[0] != vision.merge_kernel_size[1]:
        raise CheckpointError(f"{file}: merge_kernel_size {vision.merge_kernel_size} is not square")
    config.exactly("merge_kernel_size", vision.merge_kernel_size[0])
    return MediaConfig(
        patch_size=vision.patch_size,
        merge_size=vision.merge_kernel_size[0],
        image_patches=config.integer("in_patch_limit"),
        frame_patches=config.integer("in_patch_limit_each_frame"),
        side_patches=config.integer("patch_limit_on_one_side"),
        sample_fps=config.number("sample_fps", above=0),
        chunk_frames=config.integer("temporal_merge_kernel_size", most=vision.pos_emb_time),
    )


@dataclass(frozen=True)
class FrameSize:
    """An image or frame after resizing (`width`, `height`) and after padding (`grid_w`, `grid_h` patches)."""

    width: int
    height: int
    grid_w: int
    grid_h: int
    num_tokens: int

    @property
    def num_patches(self) -> int:
        return self.grid_w * self.grid_h


def frame_size(width: int, height: int, max_patches: int, config: MediaConfig) -> FrameSize:
    """The size that a picture of width x height pixels is resized and padded to.

    It shrinks, and never grows, until about `max_patches` patches and `side_patches` on each side are left. Padding
    comes after that limit, so a picture may end above it; so do the released processor's.
    """
    assert width > 0 and height > 0
    patch, side = config.patch_size, config.side_patches * config.patch_size
    by_area = math.sqrt(max_patches / (max(1.0, width // patch) * max(1.0, height // patch)))
    scale = min(1.0, by_area, side / width, side / height)
    new_width = min(max(1, int(width * scale)), side)
    new_height = min(max(1, int(height * scale)), side)
    columns, rows = -(-new_width // config.unit), -(-new_height // config.unit)
    return FrameSize(new_width, new_height, columns * config.merge_size, rows * config.merge_size, columns * rows)
