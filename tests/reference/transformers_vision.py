"""The vision tower and projector of the transformers package, with weights of the released format renamed into it."""

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

RENAMES = [
    (r"encoder\.blocks\.(\d+)\.norm1", r"layers.\1.norm2"),
    (r"encoder\.blocks\.(\d+)\.norm0", r"layers.\1.norm1"),
    (r"encoder\.blocks\.(\d+)\.mlp\.fc1", r"layers.\1.mlp.fc2"),
    (r"encoder\.blocks\.(\d+)\.mlp\.fc0", r"layers.\1.mlp.fc1"),
    (r"encoder\.blocks\.(\d+)\.wo", r"layers.\1.attn.proj"),
    (r"encoder\.blocks\.(\d+)\.wqkv", r"layers.\1.attn.wqkv"),
    (r"encoder\.final_layernorm", "final_layernorm"),
    (r"pos_emb\.weight", "pos_emb.position_embeddings"),
    (r"mm_projector\.proj\.0", "mm_projector.in_proj"),
    (r"mm_projector\.proj\.2", "mm_projector.out_proj"),
]


def renamed(weights: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Weights of tower and projector under the names of the package; q and k turned from pairs to halves."""
    result = {}
    for name, weight in weights.items():
        for pattern, replacement in RENAMES:
            # Each name has one pattern; going on would rename what was renamed.
            name, count = re.subn(pattern, replacement, name)  # noqa: PLW2901
            if count:
                break
        if ".wqkv." not in name:
            result[name] = weight
            continue
        for part, piece in zip("qkv", weight.chunk(3), strict=True):
            heads = piece.view(num_heads, -1, 2, *piece.shape[1:])
            turned = piece if part == "v" else heads.transpose(1, 2).reshape(piece.shape)
            result[name.replace("wqkv", f"{part}_proj")] = turned
    return result


class TransformersVision:
    """Both modules in float32. `config` has the fields of services.checkpoint.config.VisionConfig."""

    def __init__(self, config: Any, weights: Mapping[str, Tensor]) -> None:
        # Loaded here: the package takes seconds, which the collection of tests must not cost.
        package = "transformers.models.kimi_k25"
        modules = import_module(f"{package}.modeling_kimi_k25")
        vision = import_module(f"{package}.configuration_kimi_k25").Kimi_K25VisionConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            patch_size=config.patch_size,
            pos_emb_height=config.pos_emb_height,
            pos_emb_width=config.pos_emb_width,
            pos_emb_time=config.pos_emb_time,
            merge_kernel_size=config.merge_kernel_size,
        )
        vision._attn_implementation = "eager"
        whole = SimpleNamespace(
            vision_config=vision,
            text_config=SimpleNamespace(hidden_size=config.text_hidden_size),
            projection_hidden_size=config.hidden_size,
            projection_layer_norm_eps=config.projector_ln_eps,
        )
        self.tower = modules.Kimi_K25VisionModel(vision).eval()
        self.projector = modules.Kimi_K25MultimodalProjection(whole).eval()
        names = renamed(weights, config.num_attention_heads)
        for module, prefix in ((self.tower, "vision_tower."), (self.projector, "mm_projector.")):
            module.load_state_dict({n.removeprefix(prefix): w for n, w in names.items() if n.startswith(prefix)})

    @torch.no_grad()
    def encode(self, patches: Tensor, grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """Features of all items; their frame counts must be equal, which is a limit of the package."""
        pooled = self.tower(patches, grid_thw=torch.tensor(grids)).pooler_output
        return self.projector(pooled).squeeze(1)
