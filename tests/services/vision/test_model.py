"""Tower and projector against the golden file and transformers' modules."""

import pytest
import torch

from kernels.reference.vision import grid_angles, interpolate_grid, vit_attention
from services.checkpoint.config import VisionConfig
from services.model.tensor_names import vision_specs
from services.vision.model import Grid, VisionModel
from tests.golden import read_golden
from tests.reference.transformers_vision import TransformersVision
from tests.services.vision.golden import golden_config, golden_pixels, golden_weight

# Features are of order 1; both sides compute in float32 with different orders of sums.
TOLERANCE = 2e-4

SIZES = {
    "square": [(1, 8, 8)],
    "one-token": [(1, 2, 2)],
    "wide": [(1, 2, 40)],
    "tall": [(1, 36, 6)],
    "larger-than-the-grid": [(1, 20, 26)],
    "two-frames": [(2, 4, 6)],
    "three-frames": [(3, 6, 4)],
    "four-frames": [(4, 10, 8)],
    "several-images": [(1, 4, 4), (1, 2, 6), (1, 10, 2)],
    "several-chunks": [(4, 4, 6), (4, 2, 2)],
}


@pytest.fixture(scope="module")
def golden():
    return read_golden("vision-tower.json")


@pytest.fixture(scope="module")
def golden_model(golden):
    weights = {name: golden_weight(name, **how) for name, how in golden["weights"].items()}
    config = golden_config(golden["config"])
    assert {spec.name: spec.shape for spec in vision_specs(config)} == {n: tuple(w.shape) for n, w in weights.items()}
    return VisionModel(config, weights)


def check_golden(item, features):
    assert features.shape == (item["n_tokens"], 96)
    expected = torch.tensor(item["values"])
    assert (features[item["rows"]] - expected).abs().max() < TOLERANCE
    assert abs(features.double().abs().mean().item() - item["mean_abs"]) < TOLERANCE
    assert abs(features.double().sum().item() - item["sum"]) < TOLERANCE * features.numel()


def test_golden_items_alone(golden, golden_model):
    for item in golden["items"]:
        pixels = golden_pixels(item["pixel_tensor"], item["pixel_shape"])
        (features,) = golden_model.encode(pixels, [Grid(*item["grid_thw"])])
        check_golden(item, features)


def test_golden_items_together(golden, golden_model):
    """Items with different numbers of frames in one batch do not affect each other."""
    pixels = [golden_pixels(item["pixel_tensor"], item["pixel_shape"]) for item in golden["items"]]
    grids = [Grid(*item["grid_thw"]) for item in golden["items"]]
    for item, features in zip(golden["items"], golden_model.encode(torch.cat(pixels), grids), strict=True):
        check_golden(item, features)


def test_golden_interpolated_row(golden):
    check, how = golden["pos_emb_interp_check"], golden["weights"]["vision_tower.patch_embed.pos_emb.weight"]
    grid = golden_weight("vision_tower.patch_embed.pos_emb.weight", **how)
    row = interpolate_grid(grid, *check["target"])[check["row"]]
    assert torch.allclose(row[:8], torch.tensor(check["first8"]), atol=1e-5)


def test_rotation_turns_columns_first():
    angles = grid_angles(2, 3, 8)
    assert angles.shape == (6, 4)
    assert angles[1].tolist() == pytest.approx([1, 0, 0.01, 0])  # column 1, row 0
    assert angles[3].tolist() == pytest.approx([0, 1, 0, 0.01])  # column 0, row 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_is_softmax_within_each_item(dtype, tolerance):
    torch.manual_seed(0)
    lengths = [1, 5, 70]
    q, k, v = (torch.randn(sum(lengths), 3, 72).to(dtype) for _ in range(3))
    seen = vit_attention(q, k, v, lengths)
    for query, key, value, out in zip(*(x.float().split(lengths) for x in (q, k, v, seen)), strict=True):
        chances = (torch.einsum("qhd,khd->hqk", query, key) / 72**0.5).softmax(-1)
        assert (out - torch.einsum("hqk,khd->qhd", chances, value)).abs().max() < tolerance


def random_weights(config, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for spec in vision_specs(config):
        noise = torch.randn(spec.shape, generator=generator)
        if "norm" in spec.name and spec.name.endswith("weight"):
            noise = 1 + 0.2 * noise
        elif spec.name.endswith("bias"):
            noise = 0.2 * noise
        elif "pos_emb" not in spec.name:
            noise = 1.5 * noise / noise[0].numel() ** 0.5
        weights[spec.name] = noise
    return weights


CONFIG = VisionConfig(144, 3, 4, 200, 14, 16, 16, 4, (2, 2), 1e-5, 96)


@pytest.fixture(scope="module")
def theirs():
    return TransformersVision(CONFIG, random_weights(CONFIG, seed=3))


@pytest.mark.parametrize("grids", SIZES.values(), ids=SIZES)
def test_equals_transformers(theirs, grids):
    model = VisionModel(CONFIG, random_weights(CONFIG, seed=3))
    patches = torch.randn(sum(t * h * w for t, h, w in grids), 3, 14, 14, generator=torch.Generator().manual_seed(5))
    ours = torch.cat(model.encode(patches, [Grid(*grid) for grid in grids]))
    expected = theirs.encode(patches, grids)
    assert expected.abs().mean() > 0.1
    assert (ours - expected).abs().max() < TOLERANCE


def test_bfloat16_is_close_to_float32():
    """Within the tolerance of bf16: normalised error below 2e-2 and cosine above 0.999."""
    weights = random_weights(CONFIG, seed=4)
    rounded = {name: weight.bfloat16() for name, weight in weights.items()}
    exact = VisionModel(CONFIG, {name: weight.float() for name, weight in rounded.items()})
    patches = torch.rand(4 * 8 * 6, 3, 14, 14, generator=torch.Generator().manual_seed(5)).bfloat16() * 2 - 1
    (a,) = exact.encode(patches.float(), [Grid(4, 8, 6)])
    (b,) = VisionModel(CONFIG, rounded).encode(patches, [Grid(4, 8, 6)])
    assert b.dtype == torch.bfloat16
    assert ((a - b.float()).norm() / a.norm()) < 2e-2
    assert torch.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.999
