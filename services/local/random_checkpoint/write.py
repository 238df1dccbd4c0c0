"""Write a checkpoint in the released format with random weights.

It loads torch, so import it only to write a checkpoint.
"""

import dataclasses
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from services.checkpoint.config import CONFIG_FILE, TextConfig
from services.local.random_checkpoint.dims import SPECIAL_SLOTS, RandomDims, config_json, preset
from services.local.random_checkpoint.safetensors_writer import write_json, write_safetensors
from services.local.random_checkpoint.vocabulary import (
    copy_vocabulary,
    special_ids,
    token_biases,
    write_small_vocabulary,
)
from services.local.random_checkpoint.weights import RandomWeights
from services.model import tensor_names
from services.model.tensor_names import TensorSpec

PRESETS = ("tiny", "bench-1b")


def write_random_checkpoint(
    path: Path,
    *,
    dims: RandomDims | Literal["tiny", "bench-1b"] = "tiny",
    seed: int = 0,
    vocabulary: Literal["tiny", "real"] = "tiny",
    vocabulary_from: Path | None = None,
) -> None:
    """Write a checkpoint folder completely or not at all: it is built beside `path` and renamed when complete.

    vocabulary       "tiny" generates dims.text.vocab_size tokens (256 bytes, pieces, 256 special slots);
                     "real" copies tiktoken.model and tokenizer_config.json and uses their number of tokens
    vocabulary_from  folder with the real vocabulary
    Raises FileExistsError if `path` exists, ValueError for an impossible vocabulary size.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        _write_folder(partial, preset(dims) if isinstance(dims, str) else dims, seed, vocabulary, vocabulary_from)
        try:
            partial.rename(path)
        except OSError as error:
            raise FileExistsError(f"{path} was made by another process meanwhile") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_folder(folder: Path, dims: RandomDims, seed: int, vocabulary: str, vocabulary_from: Path | None) -> None:
    if vocabulary == "real":
        if vocabulary_from is None:
            raise ValueError("the real vocabulary is copied: vocabulary_from must name its folder")
        base = copy_vocabulary(vocabulary_from, folder)
        dims = dataclasses.replace(dims, text=dataclasses.replace(dims.text, vocab_size=base + SPECIAL_SLOTS))
    else:
        base = dims.text.vocab_size - SPECIAL_SLOTS
        write_small_vocabulary(folder, base)
    write_descriptions(folder, dims, base)
    weights = RandomWeights(dims, seed, token_biases(folder))
    shapes = {name: shape for layer in dims.text.moe_layers for name, shape in _weight_shapes(dims.text, layer)}

    def pieces(spec: TensorSpec) -> Iterable[Tensor]:
        if spec.name in shapes:
            return [torch.tensor(shapes[spec.name], dtype=torch.int32)]
        return weights.pieces(spec)

    write_safetensors(folder, checkpoint_files(dims), pieces)


def write_descriptions(folder: Path, dims: RandomDims, base: int, limits: Mapping[str, object] | None = None) -> None:
    """Write config.json, generation_config.json and, with vision, preprocessor_config.json.

    base    number of ordinary tokens
    limits  fields of preprocessor_config.json that differ from the release
    """
    ids = special_ids(base)
    token_ids = {
        "bos_token_id": ids["[BOS]"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["[PAD]"],
        "media_placeholder_token_id": ids["<|media_pad|>"],
    }
    write_json(folder / CONFIG_FILE, config_json(dims, token_ids))
    generation = {"eos_token_id": ids["<|im_end|>"], "max_length": dims.text.max_position_embeddings}
    write_json(folder / "generation_config.json", generation)
    if dims.vision is not None:
        preprocessor = _preprocessor_config(dims.vision.patch_size) | dict(limits or {})
        write_json(folder / "preprocessor_config.json", {"media_proc_cfg": preprocessor})


def checkpoint_files(dims: RandomDims) -> list[list[TensorSpec]]:
    """Return the tensors of each file as in the release: one per layer, one with embedding and head, one for vision."""
    text = dims.text
    files = [list(_layer_specs(text, layer)) for layer in range(text.num_hidden_layers)]
    files.append(list(tensor_names.edge_specs(text).values()))
    if dims.vision is not None:
        files.append(list(tensor_names.vision_specs(dims.vision)))
    return files


def _layer_specs(text: TextConfig, layer: int) -> Iterator[TensorSpec]:
    yield from tensor_names.layer_specs(text, layer)
    if text.is_moe(layer):
        for name, _ in _weight_shapes(text, layer):
            yield TensorSpec(name, (2,), torch.int32)


def _weight_shapes(text: TextConfig, layer: int) -> Iterator[tuple[str, tuple[int, int]]]:
    for expert in range(text.n_routed_experts):
        for projection, shape in tensor_names.expert_shapes(text).items():
            yield f"{tensor_names.expert_projection(layer, expert, projection)}.weight_shape", shape


def _preprocessor_config(patch_size: int) -> dict[str, object]:
    return {
        "config_type": "media_proc.processors.moonvit.MoonViTMediaProcessorConfig",
        "fixed_output_tokens": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "in_patch_limit": 16384,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "max_num_frames_each_video": None,
        "merge_kernel_size": 2,
        "patch_limit_on_one_side": 512,
        "patch_size": patch_size,
        "sample_fps": 2.0,
        "temporal_merge_kernel_size": 4,
        "timestamp_mode": "hh:mm:ss.fff",
    }
