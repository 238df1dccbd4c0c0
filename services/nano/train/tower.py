"""Nano's vision tower and projector for training: `services.vision.model` on batches of equal grids, with gradients."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from kernels.reference.vision import affine, gelu, gelu_tanh, grid_angles, interpolate_grid, layer_norm, time_table
from services.checkpoint.config import VisionConfig
from services.model.tensor_names import vision_specs
from services.nano.train.model import rotate
from services.nano.train.straight_through import as_bf16
from services.vision.model import TOWER_NORM_EPS, Grid


class Tower(nn.Module):
    """Parameters by their released names, with "/" for "."; each use rounds them to bf16."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = nn.ParameterDict(
            {
                spec.name.replace(".", "/"): nn.Parameter(_initial(spec.name, spec.shape))
                for spec in vision_specs(config)
            }
        )

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """Return the features of items that share a grid.

        patches  [items, patches of an item, 3 * patch * patch], in -1..1
        returns  [items, tokens of an item, hidden size of the text]
        """
        c = self.config
        hidden = self._linear(patches, "vision_tower.patch_embed.proj") + self._positions(grid)
        angles = grid_angles(grid.rows, grid.columns, c.hidden_size // c.num_attention_heads).repeat(grid.frames, 1)
        angles = angles.to(patches.device)
        for block in range(c.num_hidden_layers):
            hidden = self._block(hidden, (angles.cos(), angles.sin()), f"vision_tower.encoder.blocks.{block}")
        hidden = self._norm(hidden, "vision_tower.encoder.final_layernorm", TOWER_NORM_EPS)
        height, width = c.merge_kernel_size
        shape = (len(hidden), grid.frames, grid.rows // height, height, grid.columns // width, width, c.hidden_size)
        squares = hidden.view(shape).mean(dim=1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        merged = self._norm(squares, "mm_projector.pre_norm", c.projector_ln_eps).flatten(2)
        return self._linear(gelu(self._linear(merged, "mm_projector.proj.0")), "mm_projector.proj.2")

    def _positions(self, grid: Grid) -> Tensor:
        table = as_bf16(self.raw("vision_tower.patch_embed.pos_emb.weight"))
        space = interpolate_grid(table, grid.rows, grid.columns).unsqueeze(0)
        if grid.frames > 1:
            space = space + time_table(grid.frames, self.config.hidden_size).to(space.device).unsqueeze(1)
        return space.flatten(0, 1)

    def _block(self, hidden: Tensor, turn: tuple[Tensor, Tensor], prefix: str) -> Tensor:
        heads = self.config.num_attention_heads
        qkv = self._linear(self._norm(hidden, f"{prefix}.norm0", TOWER_NORM_EPS), f"{prefix}.wqkv")
        query, key, value = qkv.view(*qkv.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        seen = (
            nnf.scaled_dot_product_attention(rotate(query, turn), rotate(key, turn), value).transpose(1, 2).flatten(2)
        )
        hidden = hidden + self._linear(seen, f"{prefix}.wo")
        inner = self._linear(self._norm(hidden, f"{prefix}.norm1", TOWER_NORM_EPS), f"{prefix}.mlp.fc0")
        return hidden + self._linear(gelu_tanh(inner), f"{prefix}.mlp.fc1")

    def raw(self, name: str) -> Tensor:
        """Return the unrounded parameter of a released name."""
        weight: Tensor = self.weights[name.replace(".", "/")]
        return weight

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return affine(x, as_bf16(self.raw(f"{name}.weight")).flatten(1), as_bf16(self.raw(f"{name}.bias")))

    def _norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        return layer_norm(x, as_bf16(self.raw(f"{name}.weight")), as_bf16(self.raw(f"{name}.bias")), eps)


def _initial(name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    if "pos_emb" in name:
        return torch.randn(shape) * 0.5
    gain = 0.3 if name.endswith(("wo.weight", "fc1.weight")) else 1.0
    return torch.randn(shape) * (gain / math.sqrt(math.prod(shape[1:])))
