"""Preprocessing against the official K2.6 processor: counts, plans and pixel hashes of vision-token-counts.json."""

import hashlib
import json

import pytest
import torch
from PIL import Image

from services.vision.grid import MediaConfig, frame_size
from services.vision.preprocess import fit, patchify, value_table
from services.vision.sampling import plan_chunks, timestamp
from tests.golden import read_golden
from tests.services.vision.golden import golden_images

CONFIG = MediaConfig()


@pytest.fixture(scope="module")
def counts():
    return read_golden("vision-token-counts.json")


def pixel_values(image):
    size = frame_size(image.width, image.height, CONFIG.image_patches, CONFIG)
    patches = torch.from_numpy(patchify(fit(image, size, 14)[None], 14)).long()
    return torch.from_numpy(value_table())[patches].bfloat16()


def pixel_hash(values):
    head = {"dtype": "bfloat16", "shape": list(values.shape)}
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(text + b"\0" + values.view(torch.uint8).numpy().tobytes()).hexdigest()


def test_sizes_of_images(counts):
    assert len(counts["images"]) >= 19
    for image in counts["images"]:
        size = frame_size(image["width"], image["height"], CONFIG.image_patches, CONFIG)
        assert (size.width, size.height) == (image["resized_width"], image["resized_height"]), image
        assert [1, size.grid_h, size.grid_w] == image["grid_thw"], image
        assert (size.num_tokens, size.num_patches) == (image["tokens"], image["patches"]), image


def test_plans_of_videos(counts):
    assert len(counts["videos"]) >= 6
    for video in counts["videos"]:
        size = frame_size(video["width"], video["height"], CONFIG.frame_patches, CONFIG)
        chunks = plan_chunks(video["num_frames"], video["fps"], CONFIG)
        assert sum(len(chunk.frame_ids) for chunk in chunks) == video["sampled_frames"]
        assert len(chunks) == video["n_chunks"]
        assert len(chunks) * size.num_tokens == video["vision_tokens"]
        # For a long video, the file has the first chunks, a remark, and the last chunk.
        known = [chunk for chunk in video["chunks"] if isinstance(chunk, dict)]
        for chunk, expected in zip([*chunks[: len(known) - 1], chunks[-1]], known, strict=True):
            assert list(chunk.frame_ids) == expected["frame_indices"]
            assert chunk.prompt_text == expected["timestamp"]
            assert [len(chunk.frame_ids), size.grid_h, size.grid_w] == expected["grid_thw"]
            assert size.num_tokens == expected["vision_tokens"]


def test_pixels_are_those_of_the_official_processor(counts):
    golden = counts["pixel_golden"]
    values = {name: pixel_values(image) for name, image in golden_images().items()}
    for name, expected in golden["images"].items():
        assert pixel_hash(values[name]) == expected["sha256"], name
    assert pixel_hash(torch.cat(list(values.values()))) == golden["both_concatenated_sha256"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        pytest.param(0.0, "00:00:00.000", id="start"),
        pytest.param(189 / 30, "00:00:06.299", id="cut-not-rounded"),
        pytest.param(59.9996, "00:00:59.999", id="never-sixty"),
        pytest.param(3599.5, "00:59:59.500", id="almost-an-hour"),
        pytest.param(86_400 + 61.25, "00:01:01.250", id="a-day-wraps"),
    ],
)
def test_timestamps(seconds, text):
    assert timestamp(seconds) == text


@pytest.mark.parametrize(
    "num_frames, fps, sampled", [(1, 30.0, 1), (2, 1e9, 1), (3, 0.01, 3), (5, 4.0, 2), (7, 4.0, 4)]
)
def test_how_many_frames_are_sampled(num_frames, fps, sampled):
    chunks = plan_chunks(num_frames, fps, CONFIG)
    frames = [frame for chunk in chunks for frame in chunk.frame_ids]
    assert len(frames) == sampled  # 2.5 is rounded to 2, 3.5 to 4
    assert frames[0] == 0 and (sampled == 1 or frames[-1] == num_frames - 1)


def test_padding_is_black_on_the_right_and_below():
    image = Image.new("RGB", (20, 30), (255, 255, 255))
    pixels = fit(image, frame_size(20, 30, CONFIG.image_patches, CONFIG), 14)
    assert pixels.shape == (56, 28, 3)
    assert (pixels[:30, :20] == 255).all() and (pixels[30:] == 0).all() and (pixels[:, 20:] == 0).all()
    assert value_table()[0] == -1.0 and value_table()[255] == 1.0
