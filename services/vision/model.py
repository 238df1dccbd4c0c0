"""MoonViT and its projector as formulas (VISION.md): from patches of images and video chunks to features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels import vit_attention
from kernels.reference.vision import (
    affine,
    gelu,
    gelu_tanh,
    grid_angles,
    interpolate_grid,
    layer_norm,
    rotate_pairs,
    time_table,
)
from services.checkpoint.config import VisionConfig
from services.model.device import to_device, to_host

TOWER_NORM_EPS = 1e-5
# Rows in an MLP at a time, which bound its memory.
MLP_ROWS = 4096


@dataclass(frozen=True)
class Grid:
    """Patches of one image (one frame) or one chunk of a video."""

    frames: int
    rows: int
    columns: int

    @property
    def num_patches(self) -> int:
        return self.frames * self.rows * self.columns


class VisionModel:
    """The tower and the projector. Synchronous, without state; used by one thread.

    weights  by released names, all in the dtype of the run and on one device
    """

    def __init__(self, config: VisionConfig, weights: Mapping[str, Tensor]) -> None:
        self._config = config
        self._weights = weights
        first = weights["vision_tower.patch_embed.proj.weight"]
        self._dtype, self._device = first.dtype, first.device

    @torch.inference_mode()
    def encode(self, patches: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Return the features of each item on the host, [tokens, text_hidden_size] in the dtype of the run.

        patches  [patches of all items, channel, row, column], items in order
        """
        assert len(patches) == sum(grid.num_patches for grid in grids)
        patches = to_device(patches, self._device)
        hidden = self._linear(patches.to(self._dtype).flatten(1), "vision_tower.patch_embed.proj")
        hidden += torch.cat([self._positions(grid) for grid in grids])
        angles = torch.cat([self._angles(grid) for grid in grids])
        lengths = [grid.num_patches for grid in grids]
        for block in range(self._config.num_hidden_layers):
            hidden = self._block(hidden, angles, lengths, f"vision_tower.encoder.blocks.{block}")
        hidden = self._norm(hidden, "vision_tower.encoder.final_layernorm", TOWER_NORM_EPS)
        merged = [self._pool(item, grid) for item, grid in zip(hidden.split_with_sizes(lengths), grids, strict=True)]
        (features,) = to_host(self._project(torch.cat(merged)))
        return list(features.split_with_sizes([len(item) for item in merged]))

    def _positions(self, grid: Grid) -> Tensor:
        """Return the learned grid, resampled, for every frame; with several frames plus the time table."""
        table = self._weights["vision_tower.patch_embed.pos_emb.weight"]
        space = interpolate_grid(table, grid.rows, grid.columns).unsqueeze(0)
        if grid.frames > 1:
            space = space + to_device(time_table(grid.frames, self._config.hidden_size), self._device).unsqueeze(1)
        return space.flatten(0, 1).to(self._dtype)

    def _angles(self, grid: Grid) -> Tensor:
        head_dim = self._config.hidden_size // self._config.num_attention_heads
        return to_device(grid_angles(grid.rows, grid.columns, head_dim), self._device).repeat(grid.frames, 1)

    def _block(self, hidden: Tensor, angles: Tensor, lengths: Sequence[int], prefix: str) -> Tensor:
        """h = h + wo(attention(wqkv(norm0(h))));  h = h + fc1(gelu(fc0(norm1(h))))."""
        heads = self._config.num_attention_heads
        qkv = self._linear(self._norm(hidden, f"{prefix}.norm0", TOWER_NORM_EPS), f"{prefix}.wqkv")
        q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        seen = vit_attention(rotate_pairs(q, angles), rotate_pairs(k, angles), v, lengths)
        hidden = hidden + self._linear(seen.flatten(1), f"{prefix}.wo")
        for first, last in pairwise([*range(0, len(hidden), MLP_ROWS), len(hidden)]):
            rows = hidden[first:last]
            inner = self._linear(self._norm(rows, f"{prefix}.norm1", TOWER_NORM_EPS), f"{prefix}.mlp.fc0")
            rows += self._linear(gelu_tanh(inner), f"{prefix}.mlp.fc1")
        return hidden

    def _pool(self, item: Tensor, grid: Grid) -> Tensor:
        """Average over frames, and group the patches of each square: [tokens, patches of a square, width]."""
        height, width = self._config.merge_kernel_size
        shape = (grid.frames, grid.rows // height, height, grid.columns // width, width, -1)
        squares = item.view(shape).mean(dim=0).permute(0, 2, 1, 3, 4)
        return squares.reshape(-1, height * width, item.shape[-1])

    def _project(self, merged: Tensor) -> Tensor:
        rows = self._norm(merged, "mm_projector.pre_norm", self._config.projector_ln_eps).flatten(1)
        return self._linear(gelu(self._linear(rows, "mm_projector.proj.0")), "mm_projector.proj.2")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[f"{name}.weight"]
        return affine(x, weight.flatten(1), self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], eps)
