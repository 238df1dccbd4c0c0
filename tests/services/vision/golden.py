"""Weights and pixels of the golden files, computed by their formulas."""

import zlib

import numpy as np
import torch
from PIL import Image

from services.checkpoint.config import VisionConfig

GOLDEN_RATIO, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def numbers(name, count):
    """Return 64 random bits for each flat index of a tensor, derived from its name (splitmix64)."""
    seed = np.uint64(zlib.crc32(name.encode()) * MIX_1 % 2**64)
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN_RATIO) + seed
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    return z ^ (z >> np.uint64(31))


def golden_weight(name, shape, scale, offset):
    unit = 2 * ((numbers(name, int(np.prod(shape))) >> np.uint64(11)) / 2.0**53) - 1
    return torch.from_numpy((unit * scale + offset).astype(np.float32)).view(*shape)


def golden_pixels(name, shape):
    values = (numbers(name, int(np.prod(shape))) >> np.uint64(56)) / 255
    return torch.from_numpy(((values - 0.5) / 0.5).astype(np.float32)).view(*shape)


def golden_config(values):
    return VisionConfig(
        hidden_size=values["vt_hidden_size"],
        num_hidden_layers=values["vt_num_hidden_layers"],
        num_attention_heads=values["vt_num_attention_heads"],
        intermediate_size=values["vt_intermediate_size"],
        patch_size=values["patch_size"],
        pos_emb_height=values["init_pos_emb_height"],
        pos_emb_width=values["init_pos_emb_width"],
        pos_emb_time=values["init_pos_emb_time"],
        merge_kernel_size=tuple(values["merge_kernel_size"]),
        projector_ln_eps=values["projector_ln_eps"],
        text_hidden_size=values["text_hidden_size"],
    )


def golden_images():
    """Return the two pictures with known pixel hashes of the official processor."""
    gradient = Image.new("RGB", (32, 48))
    gradient.putdata(
        [
            ((7 * x + 3 * y + 11) % 256, (5 * x + 13 * y + 29) % 256, (17 * x + 9 * y + 47) % 256)
            for y in range(48)
            for x in range(32)
        ]
    )
    board = Image.new("RGB", (57, 33))
    board.putdata([((20, 40, 220), (235, 190, 25))[(x // 5 + y // 5) % 2] for y in range(33) for x in range(57)])
    return {"xy_gradient_32x48": gradient, "checkerboard_57x33": board}
