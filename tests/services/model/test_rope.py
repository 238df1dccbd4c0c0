import dataclasses

import pytest
import torch

from services.checkpoint.config import load_config
from services.checkpoint.rope_fields import YarnConfig
from services.local.random_checkpoint.dims import tiny_dims
from services.model.rope import yarn_inv_freq
from tests.reference.model import yarn_frequencies


def test_released_check_values(shared_data):
    text = load_config(shared_data / "kimi-k2-tokenizer" / "model_config.json").text
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
        # Both ends of the ramp fall on one pair.
        pytest.param({"rope_scaling": YarnConfig(8.0, 1.0, 1.0, 1.0, 1.0, 7)}, id="ramp-of-no-width"),
        pytest.param({"rope_scaling": YarnConfig(1.0, 32.0, 1.0, 1.0, 1.0, 4096)}, id="factor-one"),
    ],
)
def test_equal_to_the_reference(change):
    text = dataclasses.replace(tiny_dims().text, **change)
    values = dataclasses.asdict(text)
    assert torch.equal(yarn_inv_freq(text), yarn_frequencies(values))
