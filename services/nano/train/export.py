"""Nano's weights to and from a checkpoint folder in the released format."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from services.checkpoint.architecture import GROUP_SIZE
from services.local.random_checkpoint.dims import RandomDims
from services.local.random_checkpoint.safetensors_writer import write_safetensors
from services.local.random_checkpoint.vocabulary import write_vocabulary
from services.local.random_checkpoint.write import checkpoint_files, write_descriptions
from services.model import int4
from services.model.checkpoint import Checkpoint
from services.model.tensor_names import (
    PROJECTIONS,
    TensorSpec,
    attention_specs,
    dense_mlp_specs,
    edge_specs,
    expert_projection,
    expert_shapes,
    router_specs,
    shared_expert_specs,
    vision_specs,
)
from services.nano.train.model import Experts, Mlp, TextModel
from services.nano.train.tower import Tower
from services.vision.preprocess import value_table


class Nano(nn.Module):
    """The text model and the vision tower.

    pixel_values  [256] f32: the tower's input for each value of a pixel
    """

    pixel_values: Tensor

    def __init__(self, dims: RandomDims) -> None:
        super().__init__()
        assert dims.vision is not None
        self.dims = dims
        self.text = TextModel(dims.text)
        self.tower = Tower(dims.vision)
        self.register_buffer("pixel_values", torch.from_numpy(value_table()), persistent=False)


def write_checkpoint(folder: Path, nano: Nano, tokens: list[bytes], limits: dict[str, int]) -> None:
    """Write every file of the checkpoint into the existing `folder`.

    tokens  the ordinary tokens by rank
    limits  fields of preprocessor_config.json that differ from the release
    """
    write_vocabulary(folder, tokens)
    write_descriptions(folder, nano.dims, len(tokens), limits)
    stored = dict(_stored(nano))
    shapes = expert_shapes(nano.dims.text)

    def pieces(spec: TensorSpec) -> Iterable[Tensor]:
        if spec.name.endswith(".weight_shape"):
            projection = spec.name.split(".")[-2].removesuffix("_proj")
            return [torch.tensor(shapes[projection], dtype=torch.int32)]
        return [stored[spec.name].to(spec.dtype)]

    write_safetensors(folder, checkpoint_files(nano.dims), pieces)


@torch.no_grad()
def read_checkpoint(folder: Path, nano: Nano) -> None:
    """Load the weights of a checkpoint, to continue training from it."""
    checkpoint = Checkpoint(folder)
    for spec, parameter in _plain(nano):
        parameter.copy_(checkpoint.tensor(spec.name, shape=spec.shape, dtype=spec.dtype))
    for layer, expert, projection, parameter in _experts(nano):
        rows, columns = parameter.shape
        prefix = expert_projection(layer, expert, projection)
        packed = checkpoint.tensor(f"{prefix}.weight_packed", shape=(rows, columns // int4.PER_WORD), dtype=torch.int32)
        scale = checkpoint.tensor(f"{prefix}.weight_scale", shape=(rows, columns // GROUP_SIZE), dtype=torch.bfloat16)
        # Not rounded to bf16, unlike in `int4.dequantize`, so that quantising again gives the same numbers.
        parameter.copy_(int4.unpack_int4(packed).float() * scale.float().repeat_interleave(GROUP_SIZE, dim=1))


def _stored(nano: Nano) -> Iterator[tuple[str, Tensor]]:
    for spec, parameter in _plain(nano):
        yield spec.name, parameter.detach().cpu()
    for layer, expert, projection, parameter in _experts(nano):
        prefix = expert_projection(layer, expert, projection)
        packed, scale = int4.quantize(parameter.detach().cpu())
        yield f"{prefix}.weight_packed", packed
        yield f"{prefix}.weight_scale", scale


def _plain(nano: Nano) -> Iterator[tuple[TensorSpec, Tensor]]:
    """Yield the tensors that are stored unquantised, with their names."""
    text = nano.dims.text
    edge = edge_specs(text)
    yield edge["embedding"], nano.text.embedding
    yield edge["final_norm"], nano.text.final_norm.weight
    yield edge["head"], nano.text.head
    for layer, block in enumerate(nano.text.blocks):
        for field, spec in attention_specs(text, layer).items():
            value = getattr(block if field in ("input_norm", "post_norm") else block.attention, field)
            yield spec, value if isinstance(value, Tensor) else value.weight
        mlp = block.mlp
        if isinstance(mlp, Mlp):
            yield from ((spec, getattr(mlp, field)) for field, spec in dense_mlp_specs(text, layer).items())
            continue
        assert isinstance(mlp, Experts)
        router = router_specs(text, layer)
        yield router["gate"], mlp.router
        yield router["bias"], mlp.bias
        yield from ((spec, getattr(mlp.shared, field)) for field, spec in shared_expert_specs(text, layer).items())
    assert nano.dims.vision is not None
    yield from ((spec, nano.tower.raw(spec.name)) for spec in vision_specs(nano.dims.vision))


def _experts(nano: Nano) -> Iterator[tuple[int, int, str, Tensor]]:
    """Yield layer, expert, projection and weight [out, in] of the tensors that are stored in INT4."""
    for layer, block in enumerate(nano.text.blocks):
        if isinstance(block.mlp, Experts):
            for projection in PROJECTIONS:
                for expert, weight in enumerate(getattr(block.mlp, projection)):
                    yield layer, expert, projection, weight
