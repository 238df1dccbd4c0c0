import dataclasses
import json

import pytest
import torch

from services.checkpoint.config import load_config
from services.checkpoint.placement import expert_placement, layer_ranges
from services.local.random_checkpoint.dims import tiny_dims
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model import text_weights
from services.model.checkpoint import Checkpoint
from services.model.tensor_names import text_specs, vision_specs
from services.runtime.errors import CheckpointError
from tests.reference.model import ReferenceModel, unpack

ATTENTION = {
    "input_norm": "input_layernorm",
    "q_a": "self_attn.q_a_proj",
    "q_a_norm": "self_attn.q_a_layernorm",
    "q_b": "self_attn.q_b_proj",
    "kv_a": "self_attn.kv_a_proj_with_mqa",
    "kv_a_norm": "self_attn.kv_a_layernorm",
    "kv_b": "self_attn.kv_b_proj",
    "o": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
}


def test_the_release_has_these_tensors(released):
    config = load_config(released)
    specs = {spec.name: spec for spec in text_specs(config.text)}
    # 208,215 in the release, including three weight_shape per expert.
    assert len(specs) == 208_215 - 60 * 384 * 3
    assert len(list(vision_specs(config.vision))) == 335
    layer = "language_model.model.layers.60"
    for name, shape, dtype in [
        ("language_model.lm_head.weight", (163840, 7168), torch.bfloat16),
        ("language_model.model.layers.0.mlp.down_proj.weight", (7168, 18432), torch.bfloat16),
        (f"{layer}.self_attn.q_b_proj.weight", (12288, 1536), torch.bfloat16),
        (f"{layer}.self_attn.kv_b_proj.weight", (16384, 512), torch.bfloat16),
        (f"{layer}.self_attn.o_proj.weight", (7168, 8192), torch.bfloat16),
        (f"{layer}.mlp.gate.weight", (384, 7168), torch.bfloat16),
        (f"{layer}.mlp.gate.e_score_correction_bias", (384,), torch.float32),
        (f"{layer}.mlp.shared_experts.up_proj.weight", (2048, 7168), torch.bfloat16),
        (f"{layer}.mlp.experts.383.gate_proj.weight_packed", (2048, 896), torch.int32),
        (f"{layer}.mlp.experts.383.up_proj.weight_scale", (2048, 224), torch.bfloat16),
        (f"{layer}.mlp.experts.383.down_proj.weight_packed", (7168, 256), torch.int32),
        (f"{layer}.mlp.experts.383.down_proj.weight_scale", (7168, 64), torch.bfloat16),
    ]:
        assert (specs[name].shape, specs[name].dtype) == (shape, dtype)


def test_each_part_is_what_the_reference_uses(checkpoint_folder):
    reference = ReferenceModel(checkpoint_folder).weights
    checkpoint = Checkpoint(checkpoint_folder)

    def same(part, names):
        for field, name in names.items():
            assert torch.equal(getattr(part, field).float(), reference[name].float()), name

    edges = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
    same(text_weights.edge_weights(checkpoint), edges)
    mlp = {field: f"model.layers.0.mlp.{field}_proj.weight" for field in ("gate", "up", "down")}
    same(text_weights.dense_mlp_weights(checkpoint, 0), mlp)
    for layer in range(4):
        names = {field: f"model.layers.{layer}.{name}.weight" for field, name in ATTENTION.items()}
        same(text_weights.attention_weights(checkpoint, layer), names)
    prefix = "model.layers.3.mlp"
    router = {"gate": f"{prefix}.gate.weight", "bias": f"{prefix}.gate.e_score_correction_bias"}
    same(text_weights.router_weights(checkpoint, 3), router)
    shared = {field: f"{prefix}.shared_experts.{field}_proj.weight" for field in ("gate", "up", "down")}
    same(text_weights.shared_expert_weights(checkpoint, 3), shared)
    expert = text_weights.expert_tensors(checkpoint, 3, 15)
    for field, packed, scale in zip(("gate", "up", "down"), expert[::2], expert[1::2], strict=True):
        assert torch.equal(unpack(packed, scale), reference[f"{prefix}.experts.15.{field}_proj.weight"])


@pytest.mark.parametrize("shard, num_shards", [(0, 1), (0, 2), (1, 2)])
def test_an_attention_shard_reads_no_routed_expert(checkpoint_folder, shard, num_shards):
    checkpoint = Checkpoint(checkpoint_folder)
    text = checkpoint.config.text
    layers = layer_ranges(text.num_hidden_layers, num_shards)[shard]
    if shard == 0:
        text_weights.edge_weights(checkpoint)
    for layer in layers:
        text_weights.attention_weights(checkpoint, layer)
        if text.is_moe(layer):
            text_weights.router_weights(checkpoint, layer)
            text_weights.shared_expert_weights(checkpoint, layer)
        else:
            text_weights.dense_mlp_weights(checkpoint, layer)
    mine = [f".layers.{layer}." for layer in layers] + ["embed_tokens", "model.norm", "lm_head"] * (shard == 0)
    stored = Checkpoint(checkpoint_folder)
    expected = sum(
        stored.tensor(name).nbytes
        for name in stored.names
        if name.startswith("language_model.") and ".experts." not in name and any(part in name for part in mine)
    )
    assert checkpoint.bytes_read == expected


@pytest.mark.parametrize("shard, num_shards", [(0, 1), (0, 3), (2, 3)])
def test_an_expert_shard_reads_exactly_its_experts(checkpoint_folder, shard, num_shards):
    checkpoint = Checkpoint(checkpoint_folder)
    text = checkpoint.config.text
    experts = expert_placement(text.n_routed_experts, num_shards)[shard]
    for layer in text.moe_layers:
        for expert in experts:
            text_weights.expert_tensors(checkpoint, layer, expert)
    weights_each = 3 * text.hidden_size * text.moe_intermediate_size
    packed_and_scales = weights_each // 2 + 2 * weights_each // 32
    assert checkpoint.bytes_read == len(text.moe_layers) * len(experts) * packed_and_scales


def test_a_whole_checkpoint_is_complete(checkpoint_folder):
    checkpoint = Checkpoint(checkpoint_folder)
    text_weights.check_complete(checkpoint)
    assert checkpoint.bytes_read == 0


def test_missing_tensors_are_counted(damaged):
    file = damaged / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    kept = {k: v for k, v in index["weight_map"].items() if ".layers.3.mlp.experts.7." not in k and "lm_head" not in k}
    file.write_text(json.dumps({**index, "weight_map": kept}))
    with pytest.raises(CheckpointError, match=r"tensor language_model.lm_head.weight: .*; 7 tensors are missing"):
        text_weights.check_complete(Checkpoint(damaged))


def test_a_checkpoint_of_other_sizes_is_refused(damaged):
    file = damaged / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["moe_intermediate_size"] = 96
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"experts.0.gate_proj.weight_packed in .*\[96, 16\], found \[64, 16\]"):
        text_weights.expert_tensors(Checkpoint(damaged), 1, 0)


def test_experts_that_are_not_int4_are_refused(damaged):
    file = damaged / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    name = "language_model.model.layers.1.mlp.experts.0.up_proj.weight"
    index["weight_map"][name] = index["weight_map"].pop(f"{name}_packed")
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"expected INT4 experts, found .*up_proj.weight, not quantised"):
        text_weights.expert_tensors(Checkpoint(damaged), 1, 0)


def test_all_layers_may_have_experts(tmp_path):
    dims = tiny_dims()
    text = dataclasses.replace(dims.text, first_k_dense_replace=0, n_shared_experts=2)
    write_random_checkpoint(tmp_path / "moe", dims=dataclasses.replace(dims, text=text, vision=None))
    checkpoint = Checkpoint(tmp_path / "moe")
    text_weights.check_complete(checkpoint)
    assert text_weights.shared_expert_weights(checkpoint, 0).down.shape == (128, 128)
