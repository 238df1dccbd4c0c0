"""The vision path of Kimi K2.6 in one file of plain PyTorch: from a picture to the features that enter the prompt.

It shares no code with the rest of the project and computes everything the long way, in float32: one picture or video
chunk at a time, positions and rotations by formula for every patch, attention with the whole matrix of scores.

A patch:     h = W_p (pixels) + b_p + P(y, x) + T(frame)
A block:     h = h + wo(attention(norm0(h)));  h = h + fc1(gelu_tanh(fc0(norm1(h))))
After all:   h = norm(h), its mean over the frames, 2 x 2 patches side by side, each normalised: two linears with a GELU
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as nnf

PATCH = 14
IMAGE_PATCHES, FRAME_PATCHES, SIDE_PATCHES = 16384, 4096, 512


class ReferenceVision:
    """Tower and projector of a checkpoint, in float32."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())["vision_config"]
        self.weights: dict[str, Tensor] = {}
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        for name, file in index.items():
            if name.startswith(("vision_tower.", "mm_projector.")):
                with safe_open(folder / file, framework="pt") as tensors:
                    self.weights[name] = tensors.get_tensor(name).float()

    def image(self, image: Image.Image) -> Tensor:
        """Features [tokens, hidden] of a picture."""
        return self.features(frame_pixels(image, IMAGE_PATCHES).unsqueeze(0))

    def chunk(self, frames: list[Image.Image]) -> Tensor:
        """Features [tokens, hidden] of one to four frames of a video, all of one size."""
        return self.features(torch.stack([frame_pixels(frame, FRAME_PATCHES) for frame in frames]))

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Features [rows / 2 * columns / 2, hidden] of [frames, 3, 14 rows, 14 columns] in -1..1."""
        frames, rows, columns = len(pixels), pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        prefix = "vision_tower.patch_embed"
        h = nnf.conv2d(pixels, self.weights[f"{prefix}.proj.weight"], self.weights[f"{prefix}.proj.bias"], stride=PATCH)
        h = h + self.space(rows, columns)
        if frames > 1:
            h = h + self.time(frames)[:, :, None, None]
        h = h.permute(0, 2, 3, 1).reshape(frames * rows * columns, -1)
        turn = self.turns(rows, columns).repeat(frames, 1)
        for block in range(self.config["vt_num_hidden_layers"]):
            prefix = f"vision_tower.encoder.blocks.{block}"
            h = h + self.attention(self.norm(h, f"{prefix}.norm0"), turn, prefix)
            inner = self.linear(self.norm(h, f"{prefix}.norm1"), f"{prefix}.mlp.fc0")
            h = h + self.linear(nnf.gelu(inner, approximate="tanh"), f"{prefix}.mlp.fc1")
        h = self.norm(h, "vision_tower.encoder.final_layernorm").view(frames, rows, columns, -1).mean(0)
        corners = torch.stack([h[0::2, 0::2], h[0::2, 1::2], h[1::2, 0::2], h[1::2, 1::2]], dim=2)
        corners = self.norm(corners, "mm_projector.pre_norm", self.config["projector_ln_eps"])
        merged = corners.reshape(rows // 2 * (columns // 2), -1)
        return self.linear(nnf.gelu(self.linear(merged, "mm_projector.proj.0")), "mm_projector.proj.2")

    def space(self, rows: int, columns: int) -> Tensor:
        """The learned positions [width, rows, columns], resampled (bicubic) where the picture has another grid."""
        grid = self.weights["vision_tower.patch_embed.pos_emb.weight"].permute(2, 0, 1)
        if grid.shape[1:] == (rows, columns):
            return grid
        return nnf.interpolate(grid[None], size=(rows, columns), mode="bicubic")[0]

    def time(self, frames: int) -> Tensor:
        """Sines, then cosines, of frame * 10000^(-2 i / width): [frames, width]."""
        half = self.config["vt_hidden_size"] // 2
        speeds = torch.tensor([10000 ** (-i / half) for i in range(half)])
        angles = torch.arange(frames).unsqueeze(1) * speeds
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    def turns(self, rows: int, columns: int) -> Tensor:
        """Complex numbers [patches, head width / 2] that rotate pairs: by the column, by the row, and so on."""
        width = self.config["vt_hidden_size"] // self.config["vt_num_attention_heads"]
        angles = torch.empty(rows, columns, width // 2)
        for i in range(width // 4):
            speed = 10000 ** (-4 * i / width)
            angles[:, :, 2 * i] = torch.arange(columns) * speed
            angles[:, :, 2 * i + 1] = (torch.arange(rows) * speed).unsqueeze(1)
        return torch.polar(torch.ones(rows * columns, width // 2), angles.flatten(0, 1))

    def attention(self, x: Tensor, turn: Tensor, prefix: str) -> Tensor:
        """Every patch to every patch: wo(concat_h(softmax(q k^T / sqrt(width)) v)), q and k rotated."""
        heads = self.config["vt_num_attention_heads"]
        q, k, v = self.linear(x, f"{prefix}.wqkv").view(len(x), 3, heads, -1).unbind(1)
        q, k = (rotate(part, turn) for part in (q, k))
        chances = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.linear(torch.einsum("hqk,khd->qhd", chances, v).flatten(1), f"{prefix}.wo")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return nnf.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        mean, spread = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (spread + eps).sqrt() * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs (2 j, 2 j + 1) of x [patches, heads, width] as complex numbers, times `turn`."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:2], -1, 2))
    return torch.view_as_real(pairs * turn.unsqueeze(1)).flatten(2)


def frame_pixels(image: Image.Image, max_patches: int) -> Tensor:
    """A picture as the tower sees it: [3, height, width] in -1..1, shrunk to the limit and padded with black.

    scale = min(1, sqrt(limit / (floor(W / 14) floor(H / 14))), 7168 / W, 7168 / H), then up to multiples of 28
    """
    width, height = image.size
    side = SIDE_PATCHES * PATCH
    by_area = math.sqrt(max_patches / (max(1, width // PATCH) * max(1, height // PATCH)))
    scale = min(1.0, by_area, side / width, side / height)
    width, height = (min(max(1, math.trunc(length * scale)), side) for length in (width, height))
    padded = Image.new("RGB", (-(-width // 28) * 28, -(-height // 28) * 28))
    padded.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    return (torch.from_numpy(np.asarray(padded) / 255.0).float() - 0.5).permute(2, 0, 1) * 2
