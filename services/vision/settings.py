"""Settings of a vision replica."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from services.model.device import Device
from services.runtime.settings import StoreSettings, StoreUrls
from services.vision.limits import MediaLimits


class VisionSettings(StoreSettings):
    """Settings of a vision replica. The caps have the names of MediaLimits' fields."""

    model: Path = Field(description="Folder of the checkpoint.")
    store: Annotated[StoreUrls, Field(min_length=1)] = Field(
        description="Redis URLs through which features reach the engines, separated by commas."
    )
    store_timeout_s: PositiveFloat = Field(5.0, description="Timeout of one pipeline to Redis.")
    store_wait_s: NonNegativeFloat = Field(10.0, description="Time for which a store that fails is tried again.")
    media_ttl_s: PositiveFloat = Field(1800.0, description="Lifetime of features in the store.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Type of weights, activations and features.")
    device: Device = Field("auto", description="auto (a GPU if there is one), cpu or cuda.")
    threads: PositiveInt = Field(1, description="Threads of tensor arithmetic.")
    batch_patches: PositiveInt = Field(
        16_384, description="Patches in one forward pass. A single larger item still runs alone."
    )
    decoders: PositiveInt = Field(2, description="Processes that decode files.")
    decoder_memory_bytes: PositiveInt = Field(2 << 30, description="Address space of each decoder.")
    decode_s: PositiveFloat = Field(60.0, description="Processor time for one file.")
    image_repair: bool = Field(
        True,
        description="Transparency on white, orientation applied, 16-bit grey scaled; off: as the released processor.",
    )
    max_media: PositiveInt = Field(16, description="Files between decoding and store.")
    max_upload_bytes: PositiveInt = Field(512 << 20, description="Bytes of all files that are being worked on.")

    max_image_bytes: PositiveInt = Field(64 << 20, description="Size of one image file.")
    max_video_bytes: PositiveInt = Field(100 << 20, description="Size of one video file.")
    max_image_pixels: PositiveInt = Field(89_478_485, description="Width times height of an image.")
    max_frame_pixels: PositiveInt = Field(4096 * 2304, description="Width times height of one video frame.")
    max_video_s: PositiveFloat = Field(600.0, description="Duration of a video.")
    max_video_frames: PositiveInt = Field(
        36_000, description="Frames in a video file, sampled or not: all of them are decoded."
    )
    max_tokens: PositiveInt = Field(262_144, description="Prompt tokens that the features of one file may take.")

    @property
    def limits(self) -> MediaLimits:
        return MediaLimits(**{name: getattr(self, name) for name in MediaLimits.__dataclass_fields__})
