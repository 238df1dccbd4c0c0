"""What a vision replica is told at start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from services.model.device import Device
from services.runtime.settings import StoreSettings, StoreUrls
from services.vision.limits import MediaLimits


class VisionSettings(StoreSettings):
    """One field per MOONSHARD_* variable. The caps are those of MediaLimits, under the same names."""

    model: Path  # checkpoint folder
    store: Annotated[StoreUrls, Field(min_length=1)]  # features reach the engines through it
    store_timeout_s: PositiveFloat = 5.0
    media_ttl_s: PositiveFloat = 1800.0
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of weights, activations and features
    device: Device = "auto"
    threads: PositiveInt = 1
    batch_patches: PositiveInt = 16_384  # computed together, unless one item has more
    decoders: PositiveInt = 2  # processes that decode files
    decoder_memory_bytes: PositiveInt = 2 << 30  # address space of each
    decode_s: PositiveFloat = 60.0  # processor time of one file
    max_media: PositiveInt = 16  # files between decoding and store
    max_upload_bytes: PositiveInt = 512 << 20  # of all files in work

    max_image_bytes: PositiveInt = 64 << 20
    max_video_bytes: PositiveInt = 100 << 20
    max_image_pixels: PositiveInt = 89_478_485
    max_frame_pixels: PositiveInt = 4096 * 2304
    max_video_s: PositiveFloat = 600.0
    max_video_frames: PositiveInt = 36_000
    max_tokens: PositiveInt = 262_144

    @property
    def limits(self) -> MediaLimits:
        """The caps of one file."""
        return MediaLimits(**{name: getattr(self, name) for name in MediaLimits.__dataclass_fields__})
