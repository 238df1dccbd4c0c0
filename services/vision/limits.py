"""Caps on one image or video, checked from headers before anything is decoded."""

from dataclasses import dataclass

from services.runtime.errors import InvalidRequest

FIELD = "media"


@dataclass(frozen=True)
class MediaLimits:
    """Caps of one file. Every refusal names the exceeded cap.

    max_image_pixels  width times height of an image
    max_frame_pixels  width times height of one frame of a video
    max_video_frames  frames in the file, sampled or not, because all of them must be decoded
    max_tokens        tokens of the features in the prompt
    """

    max_image_bytes: int = 64 << 20
    max_video_bytes: int = 100 << 20
    max_image_pixels: int = 89_478_485
    max_frame_pixels: int = 4096 * 2304
    max_video_s: float = 600.0
    max_video_frames: int = 36_000
    max_tokens: int = 262_144

    def check(self, name: str, value: float, unit: str) -> None:
        """Raise InvalidRequest if the value is above the cap called `name`."""
        cap = getattr(self, name)
        if value > cap:
            raise refusal(f"{value:.10g} {unit}, at most {cap:.10g} are accepted ({name})")


def refusal(reason: str) -> InvalidRequest:
    """Return the error for a file that can never be served."""
    return InvalidRequest(reason, field=FIELD)
