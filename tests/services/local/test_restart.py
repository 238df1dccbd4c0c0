"""The pause before a process is restarted."""

import pytest

from services.local.restart import RestartPolicy


@pytest.mark.parametrize(
    "crashed_at, has_served, pause_s",
    [
        pytest.param([100], True, 0.0, id="first-crash-costs-no-time"),
        pytest.param([99, 100], True, 0.2, id="second"),
        pytest.param([98, 99, 100], True, 0.4, id="doubles"),
        pytest.param([97, 98, 99, 100], True, 0.8, id="doubles-again"),
        pytest.param([96, 97, 98, 99, 100], True, None, id="fifth-within-30-s-is-given-up"),
        pytest.param([60, 97, 98, 99, 100], True, 0.8, id="an-old-crash-does-not-count"),
        pytest.param([10, 20, 30, 40, 50, 100], True, 0.0, id="one-a-while-is-never-given-up"),
        pytest.param([70, 100], True, 0.0, id="exactly-the-window-ago-is-old"),
        pytest.param([99, 100], False, 0.2, id="may-fail-twice-at-the-start"),
        pytest.param([1, 50, 100], False, None, id="not-three-times-however-slowly"),
    ],
)
def test_pause(crashed_at, has_served, pause_s):
    assert RestartPolicy().pause_s(crashed_at, 100, has_served=has_served) == pause_s


def test_pause_is_bounded():
    policy = RestartPolicy(max_crashes=100)
    assert policy.pause_s([100.0] * 50, 100, has_served=True) == 5.0
