"""The floors against figures worked out by hand."""

import pytest

from kernels import roofline


@pytest.mark.parametrize(
    "cost, microseconds",
    [
        pytest.param(roofline.expert_mlp(1), 46, id="one-token"),
        pytest.param(roofline.expert_mlp(128), 2070, id="128-tokens"),
        pytest.param(roofline.expert_mlp(32_768), 29_200, id="prefill-is-bound-by-flops"),
        pytest.param(roofline.linear(7168, 8192, 1), 27.3, id="o"),
        pytest.param(roofline.linear(7168, 8192, 4096), 609, id="o-prefill"),
        pytest.param(roofline.add_rms_norm(4096), 55, id="add_rms_norm"),
        pytest.param(roofline.mla_decode(1, 32_768), 8.8, id="decode-32k"),
        pytest.param(roofline.mla_decode(128, 32_768), 1130, id="decode-128-rows"),
        pytest.param(roofline.sample(8), 1.2, id="sample"),
    ],
)
def test_floor(cost, microseconds):
    assert cost.floor_s * 1e6 == pytest.approx(microseconds, rel=0.02)
