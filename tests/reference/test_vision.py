"""The reference's vision path equals the golden tower and transformers' own model, alone and inside whole prompts."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.reference.model import ReferenceModel
from tests.reference.test_against_transformers import TOLERANCE as LOGIT_TOLERANCE
from tests.reference.test_against_transformers import transformers_model
from tests.reference.transformers_vision import TransformersVision
from tests.reference.vision import IMAGE_PATCHES, ReferenceVision, frame_pixels

# Absolute, on features of order 1: sums in another order.
TOLERANCE = 2e-4
TEXT = [5, 9, 130, 77, 250]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "vision"
    write_random_checkpoint(folder, seed=11)
    return folder


@pytest.fixture(scope="module")
def vision(checkpoint):
    return ReferenceVision(checkpoint)


@pytest.fixture(scope="module")
def theirs(vision):
    sizes = {name: value for name, value in vision.config.items() if not name.startswith("vt_")}
    return TransformersVision(SimpleNamespace(**sizes), vision.weights)


def noise(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def patches(pixels):
    """[frames, 3, height, width] as [patches, 3, 14, 14]."""
    rows, columns = pixels.shape[2] // 14, pixels.shape[3] // 14
    cut = pixels.view(len(pixels), 3, rows, 14, columns, 14).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(-1, 3, 14, 14), (len(pixels), rows, columns)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (200, 60), (60, 330), (448, 300)])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_features_equal_transformers(vision, theirs, size, frames):
    pixels = torch.stack([frame_pixels(noise(*size, seed), IMAGE_PATCHES) for seed in range(frames)])
    flat, grid = patches(pixels)
    expected = theirs.encode(flat, [grid])
    assert expected.std() > 0.1
    assert (vision.features(pixels) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("frames", [[1], [1, 1], [4], [4, 4]], ids=["image", "two-images", "chunk", "two-chunks"])
def test_logits_equal_transformers(checkpoint, vision, theirs, frames):
    """Their tower, projector and text model against ours."""
    model = transformers_model(checkpoint, torch.float32)
    pad = json.loads((checkpoint / "config.json").read_text())["media_placeholder_token_id"]
    model.config.image_token_id = model.model.config.image_token_id = pad

    token_ids, media, outputs = list(TEXT), [], []
    for index, count in enumerate(frames):
        # Seeds without a near tie in a router, where a difference of 1e-6 would choose another expert.
        frame_seeds = range(1 + 11 * index, 1 + 11 * index + count)
        pixels = torch.stack([frame_pixels(noise(90 + 60 * index, 70, seed), IMAGE_PATCHES) for seed in frame_seeds])
        features = vision.features(pixels)
        media.append((len(token_ids), features))
        token_ids += [pad] * len(features) + TEXT
        cut, grid = patches(pixels)
        outputs.append(theirs.encode(cut, [grid]))
    ours = ReferenceModel(checkpoint).logits(token_ids, media=media)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor([token_ids]),
            # Handed over after their tower and projector: its own way there miscounts the tokens of several frames, and
            # takes the projector's width from a field that the released config.json does not have.
            mm_encoder_outputs={"image": SimpleNamespace(pooler_output=outputs)},
        ).logits[0]
    torch.testing.assert_close(ours, expected, atol=LOGIT_TOLERANCE, rtol=0)
    blind = ReferenceModel(checkpoint).logits(token_ids)
    assert (blind - expected).abs().max() > 1
