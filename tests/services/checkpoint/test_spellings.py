"""One model in every spelling: as released, as written by transformers 5, and flat; the oracle is transformers."""

import json

import pytest

from services.checkpoint.config import load_config
from services.runtime.errors import CheckpointError


@pytest.fixture
def released(released):
    """The released configuration as JSON."""
    return json.loads((released / "config.json").read_text())


@pytest.fixture
def load(tmp_path):
    """Write a configuration unchanged and load it."""

    def load(values):
        (tmp_path / "config.json").write_text(json.dumps(values))
        return load_config(tmp_path)

    return load


def flat(released):
    """Return the configuration of the language model alone, in the form of K2-Thinking."""
    return {"architectures": ["DeepseekV3ForCausalLM"], **released["text_config"]}


def test_what_transformers_writes_is_the_same_model(released, load, tmp_path):
    from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25Config  # noqa: PLC0415 - takes seconds

    expected = load(released)
    Kimi_K25Config(**released).save_pretrained(tmp_path)
    assert "rope_scaling" not in (tmp_path / "config.json").read_text()
    assert load_config(tmp_path) == expected


def test_a_language_model_alone(released, load, tmp_path):
    from transformers import DeepseekV3Config  # noqa: PLC0415 - takes seconds

    expected = load(released).text
    config = load(flat(released))
    assert (config.text, config.vision, config.media_placeholder_token_id) == (expected, None, None)
    assert config.stop_ids == {163586}
    values = {name: value for name, value in flat(released).items() if name not in ("auto_map", "model_type")}
    DeepseekV3Config(**values).save_pretrained(tmp_path)
    assert load_config(tmp_path) == config


def test_rope_parameters_beside_no_rope_scaling_keep_yarn(released, load):
    expected = load(released).text
    text = released["text_config"]
    text["rope_parameters"] = {"rope_type": "yarn", "rope_theta": text.pop("rope_theta"), **text["rope_scaling"]}
    text["rope_scaling"] = None
    found = load(released).text
    assert found.rope_scaling is not None
    assert found == expected


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "flat"])
@pytest.mark.parametrize(
    "removed",
    [
        *("hidden_act", "scoring_func", "topk_method", "attention_bias", "moe_layer_freq", "num_nextn_predict_layers"),
        *("num_key_value_heads", "norm_topk_prob"),
    ],
)
def test_absent_fields_have_the_value_that_is_served(released, load, removed, wrapped):
    values = released if wrapped else flat(released)
    expected = load(values)
    del (released["text_config"] if wrapped else values)[removed]
    assert load(values) == expected


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda v: v["text_config"].update(torch_dtype=v["text_config"].pop("dtype")), id="torch_dtype"),
        pytest.param(lambda v: v["text_config"].pop("dtype"), id="dtype-of-the-wrapper"),
        pytest.param(
            lambda v: v.update(quantization_config=v["text_config"].pop("quantization_config")), id="quantization"
        ),
        pytest.param(
            lambda v: v["text_config"]["rope_scaling"].update(rope_type=v["text_config"]["rope_scaling"].pop("type")),
            id="rope_type",
        ),
        pytest.param(lambda v: v.update(image_token_id=v.pop("media_placeholder_token_id")), id="image_token_id"),
        pytest.param(lambda v: v.update(eos_token_id=[163586]), id="list-of-one-end"),
        pytest.param(lambda v: v["text_config"].update(num_mtp_layers=0), id="num_mtp_layers"),
    ],
)
def test_other_names_of_the_same(released, load, change):
    expected = load(released)
    change(released)
    assert load(released) == expected


def test_end_tokens_of_every_file_count(released, load, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [163586, 7]}))
    released["eos_token_id"] = [163585, 163593]
    assert load(released).stop_ids == {7, 163585, 163586, 163593}


def rope(**fields):
    yarn = {"rope_type": "yarn", "rope_theta": 50000.0, "factor": 64.0, "beta_fast": 32.0, "beta_slow": 1.0}
    yarn |= {"mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096}
    return yarn | fields


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param(
            {"rope_parameters": rope(factor=32.0)}, "rope_parameters: expected the same as rope_scaling", id="both"
        ),
        pytest.param(
            {"rope_scaling": None, "rope_parameters": rope(rope_theta=1e4)},
            "rope_parameters.rope_theta: expected 50000.0, as in text_config.rope_theta, found 10000.0",
            id="theta",
        ),
        pytest.param(
            {"rope_scaling": rope(type="default")}, 'rope_scaling.type: expected "yarn", as in rope_type', id="types"
        ),
        pytest.param(
            {"rope_scaling": {"factor": 64.0}},
            'rope_scaling.rope_type: expected "default" or "yarn", found no such field',
            id="stretched-without-a-type",
        ),
        pytest.param({"rope_scaling": rope(attention_factor=2.0)}, "attention_factor: expected 1, found 2.0", id="cos"),
        pytest.param({"rope_scaling": rope(truncate=False)}, "truncate: expected true, found false", id="truncate"),
        pytest.param(
            {"rope_scaling": rope(mscale=None)}, "mscale: expected a number, found no such field", id="mscale"
        ),
        pytest.param(
            {"rope_scaling": rope(rope_type="llama3")}, 'expected "default" or "yarn", found "llama3"', id="3"
        ),
        pytest.param(
            {"torch_dtype": "float16"}, 'torch_dtype: expected "bfloat16", as in dtype, found "float16"', id="d"
        ),
        pytest.param({"num_mtp_layers": 1}, "num_mtp_layers: expected 0, as in num_nextn_predict_layers", id="mtp"),
        pytest.param({"rope_interleave": False}, "rope_interleave: expected true, found false", id="halves"),
        pytest.param({"eos_token_id": ["</s>"]}, "text_config.eos_token_id: expected a whole number", id="end"),
    ],
)
def test_contradictions_and_what_is_not_computed_are_refused(released, load, changes, message):
    released["text_config"] |= changes
    with pytest.raises(CheckpointError) as error:
        load(released)
    assert message in error.value.message
    assert "field text_config." in error.value.message


def test_other_models_are_refused(released, load):
    with pytest.raises(
        CheckpointError, match='model_type: expected "kimi_k25" or "kimi_k2" or "deepseek_v3", found "llama"'
    ):
        load(released | {"model_type": "llama"})
    with pytest.raises(CheckpointError, match="field quantization_config: expected an object, found no such field"):
        load({name: value for name, value in flat(released).items() if name != "quantization_config"})
