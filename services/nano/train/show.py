"""Prints samples for people to read: `python -m services.nano.train.show compare --samples 5`.

`--pictures FOLDER` also writes the samples' pictures there, with the frames of a video side by side.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from services.nano.train.sample import Json, Sample
from services.nano.train.skills import GENERATORS, generate
from services.tokenizer.declaration import declare


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m services.nano.train.show", description=__doc__)
    parser.add_argument("skills", nargs="*", help="all, if none is named")
    parser.add_argument("--samples", type=int, default=3, help="of each skill (default: 3)")
    parser.add_argument("--split", choices=("train", "held_out"), default="train")
    parser.add_argument("--pictures", type=Path, help="folder for what the samples show")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.skills) - GENERATORS.keys())
    if unknown:
        parser.error(f"no skill is called {unknown[0]}; there are: {', '.join(GENERATORS)}")
    for skill in options.skills or GENERATORS:
        for seed in range(options.samples):
            sample = generate(skill, options.split, seed)
            sys.stdout.write(f"=== {skill} {seed}: {_mode(sample)}\n{text_of(sample)}\n")
            if options.pictures is not None:
                options.pictures.mkdir(parents=True, exist_ok=True)
                for number, picture in enumerate(_pictures(sample)):
                    picture.save(options.pictures / f"{skill}-{seed}-{number}.png")


def text_of(sample: Sample) -> str:
    """Format the sample: declarations, then the thoughts, text and calls of each message."""
    lines = [declare(sample.tools)] if sample.tools else []
    for message in sample.messages:
        if message.get("reasoning_content"):
            lines.append(f"{message['role']} (thinks): {message['reasoning_content']}")
        if message["content"]:
            lines.append(f"{message['role']}: {_content(message)}")
        for call in message.get("tool_calls", ()):
            lines.append(f"{message['role']} (calls {call['id']}): {call['function']['arguments']}")
    return "\n".join([*lines, ""])


def _mode(sample: Sample) -> str:
    words = ["thinking" if sample.thinking else "instant"]
    words += ["with preserve_thinking"] if sample.preserve_thinking else []
    words += [f"as {json.dumps(sample.answer_schema)}"] if sample.answer_schema is not None else []
    return ", ".join(words)


def _content(message: Json) -> str:
    parts = message["content"]
    if isinstance(parts, str):
        return parts
    return " ".join(part.get("text", f"[{part['type'].removesuffix('_url')}]") for part in parts)


def _pictures(sample: Sample) -> list[Image.Image]:
    return [*sample.images, *(_side_by_side(video.frames) for video in sample.videos)]


def _side_by_side(frames: Sequence[Image.Image]) -> Image.Image:
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * width, 0))
    return strip


if __name__ == "__main__":
    main()
