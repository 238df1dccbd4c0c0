import dataclasses
import json

import pytest
import torch

from services.checkpoint.config import load_config
from services.checkpoint.rope_fields import YarnConfig
from services.local.random_checkpoint.dims import tiny_dims
from services.model.rope import yarn_inv_freq
from tests.reference.model import yarn_frequencies


def test_released_check_values(released):
    text = load_config(released).text
    found = yarn_inv_freq(text)
    assert found.shape == (32,)
    assert found.dtype == torch.float32
    checks = {
        0: 1.0,
        1: 0.713111084911932,
        8: 0.0668740304976422,
        12: 0.011619159941997385,
        20: 50000 ** (-40 / 64) / 64,
        31: 4.382206455794937e-07,
    }
    for index, expected in checks.items():
        assert found[index].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="tiny"),
        pytest.param({"rope_scaling": None}, id="no-yarn"),
        pytest.param({"qk_rope_head_dim": 2}, id="one-pair"),
        # Both ends of the ramp are at the same pair.
        pytest.param({"rope_scaling": YarnConfig(8.0, 1.0, 1.0, 1.0, 1.0, 7)}, id="ramp-of-no-width"),
        pytest.param({"rope_scaling": YarnConfig(1.0, 32.0, 1.0, 1.0, 1.0, 4096)}, id="factor-one"),
    ],
)
def test_equal_to_the_reference(change):
    text = dataclasses.replace(tiny_dims().text, **change)
    values = dataclasses.asdict(text)
    assert torch.equal(yarn_inv_freq(text), yarn_frequencies(values))


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "absent",
    [(), ("beta_fast",), ("beta_slow",), ("original_max_position_embeddings",)],
    ids="+".join,
)
def test_equal_to_transformers_where_fields_are_absent(released, tmp_path, name, absent):
    # Imported here, because loading transformers takes seconds.
    from transformers import DeepseekV3Config  # noqa: PLC0415
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import yarn_apply_mscale  # noqa: PLC0415

    text = json.loads((released / "config.json").read_text())["text_config"]
    yarn = {field: value for field, value in text.pop("rope_scaling").items() if field not in absent}
    text[name] = yarn
    (tmp_path / "config.json").write_text(json.dumps(text))
    theirs = DeepseekV3Config(**{field: value for field, value in text.items() if field != "model_type"})
    expected, cos_factor = ROPE_INIT_FUNCTIONS["yarn"](theirs)
    ours = load_config(tmp_path).text
    assert cos_factor == 1.0
    torch.testing.assert_close(yarn_inv_freq(ours), expected, rtol=1e-6, atol=0)
    assert ours.softmax_scale == pytest.approx(yarn_apply_mscale(theirs.rope_parameters, ours.qk_head_dim**-0.5))
