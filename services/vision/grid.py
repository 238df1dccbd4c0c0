"""Sizes of an image or frame after resizing, its patches and its tokens (VISION.md). Only arithmetic."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.checkpoint.config import VisionConfig
from services.checkpoint.json_fields import PositiveNumber, Section, Size, check, read_json_object, refusal, section
from services.runtime.errors import CheckpointError

CONFIG_FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class MediaConfig:
    """The fields of `media_proc_cfg` in preprocessor_config.json that differ between checkpoints."""

    patch_size: int = 14
    merge_size: int = 2
    image_patches: int = 16384
    frame_patches: int = 4096
    side_patches: int = 512
    sample_fps: float = 2.0
    chunk_frames: int = 4

    @property
    def unit(self) -> int:
        """Pixels on the side of a token's square."""
        return self.patch_size * self.merge_size

    def to_json(self) -> str:
        """Return the values for the decoder process and for names of features."""
        return json.dumps(vars(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "MediaConfig":
        return MediaConfig(**json.loads(text))


class _MediaFields(Section):
    """`media_proc_cfg`: limits that differ between checkpoints, and fields with a single implemented value."""

    in_patch_limit: Size
    in_patch_limit_each_frame: Size
    patch_limit_on_one_side: Size
    sample_fps: PositiveNumber
    temporal_merge_kernel_size: Size
    timestamp_mode: Literal["hh:mm:ss.fff"]
    fixed_output_tokens: None = None
    in_patch_limit_video: None = None


def load_media_config(folder: Path, vision: VisionConfig) -> MediaConfig:
    """Read preprocessor_config.json. Raises CheckpointError for unsupported values."""
    file, place = folder / CONFIG_FILE, "media_proc_cfg."
    values = section(read_json_object(file), "media_proc_cfg", file)
    fields = check(_MediaFields, values, file, place)
    merge, square = vision.merge_kernel_size
    if merge != square:
        raise CheckpointError(f"{file}: merge_kernel_size {vision.merge_kernel_size} is not square")
    half = [0.5, 0.5, 0.5]
    given = {"image_mean": half, "image_std": half, "patch_size": vision.patch_size, "merge_kernel_size": merge}
    for name, value in given.items():
        if values.get(name) != value:
            raise refusal(file, place + name, json.dumps(value), values.get(name), absent=name not in values)
    if fields.temporal_merge_kernel_size > vision.pos_emb_time:
        expected = f"a whole number 1..{vision.pos_emb_time}"
        raise refusal(file, f"{place}temporal_merge_kernel_size", expected, fields.temporal_merge_kernel_size)
    return MediaConfig(
        patch_size=vision.patch_size,
        merge_size=merge,
        image_patches=fields.in_patch_limit,
        frame_patches=fields.in_patch_limit_each_frame,
        side_patches=fields.patch_limit_on_one_side,
        sample_fps=fields.sample_fps,
        chunk_frames=fields.temporal_merge_kernel_size,
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
    """Return the size to which a picture of width x height pixels is resized and padded.

    A picture is only ever shrunk, to about `max_patches` patches and `side_patches` on each side. Padding follows and
    may exceed this limit, as in the released processor.
    """
    assert width > 0 and height > 0
    patch, side = config.patch_size, config.side_patches * config.patch_size
    by_area = math.sqrt(max_patches / (max(1.0, width // patch) * max(1.0, height // patch)))
    scale = min(1.0, by_area, side / width, side / height)
    new_width = min(max(1, int(width * scale)), side)
    new_height = min(max(1, int(height * scale)), side)
    columns, rows = -(-new_width // config.unit), -(-new_height // config.unit)
    return FrameSize(new_width, new_height, columns * config.merge_size, rows * config.merge_size, columns * rows)
