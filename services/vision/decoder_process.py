"""The process that decodes files, so that a hostile file can only harm this process.

The caps come once, as an argument. Then it reads one job after another from standard input and writes to standard
output: a plan, then the pixels of each chunk, or a reason for refusal. It has no network and no torch.
"""

import json
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Literal

from PIL import Image

from services.runtime.errors import InvalidRequest
from services.vision.grid import MediaConfig, frame_size
from services.vision.images import open_image
from services.vision.limits import MediaLimits, refusal
from services.vision.preprocess import Pixels, fit
from services.vision.videos import decode_video, plan_video

Kind = Literal["image", "video"]
# Sizes: bytes of JSON, then bytes of pixels or of a file.
HEADER = struct.Struct("<IQ")


@dataclass(frozen=True)
class DecoderOptions:
    """Options of a decoder process, one JSON argument at start.

    memory_bytes  limit of address space, libraries included
    cpu_s         limit of processor time for one file
    repair        `image_repair` of the settings
    """

    limits: MediaLimits
    config: MediaConfig
    memory_bytes: int
    cpu_s: float
    repair: bool

    def to_json(self) -> str:
        return json.dumps({**vars(self), "limits": vars(self.limits), "config": vars(self.config)})

    @staticmethod
    def from_json(text: str) -> "DecoderOptions":
        values = json.loads(text)
        limits, config = MediaLimits(**values.pop("limits")), MediaConfig(**values.pop("config"))
        return DecoderOptions(limits, config, **values)


def write_message(output: IO[bytes], record: dict[str, Any], data: memoryview | bytes = b"") -> None:
    """Write one message: header, JSON, bytes."""
    text = json.dumps(record).encode()
    output.write(HEADER.pack(len(text), len(data)) + text)
    output.write(data)
    output.flush()


def read_message(source: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read the next message; None at the end."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    num_text, num_data = HEADER.unpack(header)
    return json.loads(source.read(num_text)), source.read(num_data)


def answer(kind: Kind, data: bytes, options: DecoderOptions) -> Iterator[tuple[dict[str, Any], Pixels | None]]:
    """Yield the messages for one file: a plan {grid, num_tokens, chunks}, then the pixels of each chunk."""
    limits, config = options.limits, options.config
    if kind == "image":
        image = open_image(data, limits, repair=options.repair)
        size = frame_size(image.width, image.height, config.image_patches, config)
        limits.check("max_tokens", size.num_tokens, "tokens")
        chunks, pixels = [{"num_frames": 1, "prompt_text": ""}], iter([fit(image, size, config.patch_size)[None]])
    else:
        plan = plan_video(data, limits, config, repair=options.repair)
        size, pixels = plan.size, decode_video(data, plan, limits, config)
        chunks = [{"num_frames": len(c.frame_ids), "prompt_text": c.prompt_text} for c in plan.chunks]
    yield {"grid_h": size.grid_h, "grid_w": size.grid_w, "num_tokens": size.num_tokens, "chunks": chunks}, None
    for chunk in pixels:
        yield {"shape": chunk.shape}, chunk


def work(options: DecoderOptions, source: IO[bytes], output: IO[bytes]) -> None:
    """Decode files until the input ends. A file that takes too long ends the process by SIGPROF."""
    while (job := read_message(source)) is not None:
        record, data = job
        signal.setitimer(signal.ITIMER_PROF, options.cpu_s)
        try:
            for message, pixels in answer(record["kind"], data, options):
                write_message(output, message, b"" if pixels is None else pixels.data.cast("B"))
        except InvalidRequest as error:
            write_message(output, {"refused": error.message})
        except MemoryError:
            cap = f"{options.memory_bytes >> 20} MiB (decoder_memory_bytes)"
            write_message(output, {"refused": refusal(f"decoding needs more memory than {cap}").message})
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> None:
    options = DecoderOptions.from_json(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_bytes, options.memory_bytes))
    # Pillow's own limit, for formats that it allocates while opening them: it refuses twice the size at which it warns.
    Image.MAX_IMAGE_PIXELS = options.limits.max_image_pixels // 2
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    work(options, sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
