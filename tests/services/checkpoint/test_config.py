import json
from functools import reduce

import pytest

from services.checkpoint.config import load_config
from services.runtime.errors import CheckpointError


def test_released_configuration(released):
    config = load_config(released)
    text = config.text
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (7168, 61, 64)
    assert (text.q_lora_rank, text.kv_lora_rank, text.latent_dim) == (1536, 512, 576)
    assert (text.qk_nope_head_dim, text.qk_rope_head_dim, text.v_head_dim, text.qk_head_dim) == (128, 64, 128, 192)
    assert (text.intermediate_size, text.moe_intermediate_size) == (18432, 2048)
    assert (text.n_routed_experts, text.num_experts_per_tok, text.n_shared_experts) == (384, 8, 1)
    assert (text.routed_scaling_factor, text.norm_topk_prob) == (2.827, True)
    assert (text.n_group, text.topk_group) == (1, 1)
    assert (text.rms_norm_eps, text.rope_theta) == (1e-5, 50000.0)
    assert (text.vocab_size, text.max_position_embeddings) == (163840, 262144)
    assert text.moe_layers == range(1, 61)
    assert (text.is_moe(0), text.is_moe(1), text.is_moe(60), text.is_moe(61)) == (False, True, True, False)
    assert text.softmax_scale == pytest.approx(0.14467962580268923, rel=1e-15)
    assert (config.stop_ids, config.media_placeholder_token_id) == ({163586}, 163605)


def test_released_vision_configuration(released):
    vision = load_config(released).vision
    assert vision is not None
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1152, 27, 16)
    assert (vision.intermediate_size, vision.patch_size, vision.merge_kernel_size) == (4304, 14, (2, 2))
    assert (vision.pos_emb_height, vision.pos_emb_width, vision.pos_emb_time) == (64, 64, 4)
    assert (vision.projector_ln_eps, vision.text_hidden_size) == (1e-5, 7168)


WEIGHTS = "text_config.quantization_config.config_groups.group_0.weights"
REFUSED = [
    ("model_type", "llama", '"kimi_k25"', '"llama"'),
    ("model_type", None, '"kimi_k25"', "null"),
    ("tie_word_embeddings", True, "false", "true"),
    ("text_config", [], "an object", "[]"),
    ("eos_token_id", 576, "a whole number 0..575", "576"),
    ("media_placeholder_token_id", "0", "a whole number 0..575", '"0"'),
    ("text_config.model_type", "llama", '"kimi_k2"', '"llama"'),
    ("text_config.hidden_act", "gelu", '"silu"', '"gelu"'),
    ("text_config.scoring_func", "softmax", '"sigmoid"', '"softmax"'),
    ("text_config.topk_method", "greedy", '"noaux_tc"', '"greedy"'),
    ("text_config.attention_bias", True, "false", "true"),
    ("text_config.attention_bias", 0, "false", "0"),
    ("text_config.moe_layer_freq", 2, "1", "2"),
    ("text_config.num_nextn_predict_layers", 1, "0", "1"),
    ("text_config.dtype", "float16", '"bfloat16"', '"float16"'),
    ("text_config.num_key_value_heads", 1, "4", "1"),
    ("text_config.q_lora_rank", None, "a whole number >= 1", "null"),
    ("text_config.hidden_size", 100, "a multiple of 32", "100"),
    ("text_config.moe_intermediate_size", 48, "a multiple of 32", "48"),
    ("text_config.hidden_size", True, "a whole number >= 1", "true"),
    ("text_config.qk_rope_head_dim", 15, "an even number", "15"),
    ("text_config.num_experts_per_tok", 17, "a whole number 1..16", "17"),
    ("text_config.first_k_dense_replace", 5, "a whole number 0..4", "5"),
    ("text_config.n_group", 3, "a divisor of 16 experts", "3"),
    ("text_config.n_group", 16, "two or more in a group", "16"),
    ("text_config.rms_norm_eps", 0, "a number > 0", "0"),
    ("text_config.norm_topk_prob", 1, "true or false", "1"),
    ("text_config.rope_scaling.type", "linear", '"yarn"', '"linear"'),
    ("text_config.rope_scaling.mscale", 0.7, "1.0", "0.7"),
    ("text_config.rope_scaling.factor", "64", "a number > 0", '"64"'),
    ("text_config.quantization_config", None, "an object", "null"),
    ("text_config.quantization_config.quant_method", "awq", '"compressed-tensors"', '"awq"'),
    (f"{WEIGHTS}.num_bits", 8, "4", "8"),
    (f"{WEIGHTS}.group_size", 128, "32", "128"),
    (f"{WEIGHTS}.symmetric", False, "true", "false"),
    (f"{WEIGHTS}.actorder", "group", "null", '"group"'),
    ("vision_config.merge_kernel_size", [2], "2 positive whole numbers", "[2]"),
    ("vision_config.text_hidden_size", 64, "128", "64"),
]


def write_changed(folder, path, value):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    *parents, name = path.split(".")
    reduce(dict.__getitem__, parents, values)[name] = value
    file.write_text(json.dumps(values))


@pytest.mark.parametrize("path, value, expected, found", REFUSED, ids=[f"{p}={v}" for p, v, *_ in REFUSED])
def test_refusals_name_the_field(damaged, path, value, expected, found):
    write_changed(damaged, path, value)
    with pytest.raises(CheckpointError) as error:
        load_config(damaged)
    assert str(damaged / "config.json") in error.value.message
    assert f"field {path}: expected" in error.value.message
    assert expected in error.value.message
    assert error.value.message.endswith(f"found {found}")


def test_absent_fields_are_named(damaged):
    file = damaged / "config.json"
    values = json.loads(file.read_text())
    del values["text_config"]["v_head_dim"]
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"text_config.v_head_dim: expected .*, found no such field"):
        load_config(damaged)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"], ids=["empty", "cut", "list", "binary"])
def test_a_file_that_is_no_object_is_refused(damaged, content):
    (damaged / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config.json: expected"):
        load_config(damaged)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_config(tmp_path)


def test_vision_and_yarn_may_be_absent(damaged):
    write_changed(damaged, "vision_config", None)
    write_changed(damaged, "text_config.rope_scaling", None)
    config = load_config(damaged)
    assert config.vision is None
    assert config.text.rope_scaling is None
    assert config.text.softmax_scale == 48**-0.5
