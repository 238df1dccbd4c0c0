"""Settings of the autoscaler, and its messages about bad ones."""

import pytest
from pydantic import ValidationError

from services.autoscaler.policy import Limits
from services.autoscaler.settings import AutoscalerSettings

BUILTIN = {
    "listen": "h:1",
    "mode": "builtin",
    "gateways": "dns:gateway-peers.ns.svc:50052",
    "roles": {"decode": {"workload": "statefulset/decode", "shards": 2, "max": 4}},
    "namespace": "ns",
    "lease": "autoscaler",
    "instance": "autoscaler-0",
}


def test_roles_are_json_in_the_environment(monkeypatch):
    for name, value in {**BUILTIN, "roles": '{"decode": {"workload": "statefulset/decode", "max": 4}}'}.items():
        monkeypatch.setenv(f"MOONSHARD_{name.upper()}", str(value))
    assert AutoscalerSettings().limits == {"decode": Limits(0, 4, 32)}


@pytest.mark.parametrize(
    "given, complaint",
    [
        pytest.param({"lease": ""}, "MOONSHARD_LEASE is not set", id="no-lease"),
        pytest.param({"mode": "local"}, "MOONSHARD_CONTROL is not set", id="no-control"),
        pytest.param({"roles": {}}, "at least 1 item", id="no-roles"),
        pytest.param({"roles": {"decode": {"max": 1}}}, "decode has no workload", id="no-workload"),
        pytest.param({"roles": {"decode": {"workload": "pod/x"}}}, "neither statefulset", id="workload"),
        pytest.param({"roles": {"decode": {"min": 3, "max": 2}}}, "min=3 is more than max=2", id="range"),
        pytest.param({"roles": {"decode": {"max": 0}}}, "greater than 0", id="none"),
        pytest.param({"roles": {"decode": {"maximum": 2}}}, "Extra inputs", id="unknown-key"),
        pytest.param({"roles": {"redis": {}}}, "Input should be 'tokenizer'", id="unknown-role"),
    ],
)
def test_bad_settings(given, complaint):
    with pytest.raises(ValidationError, match=complaint):
        AutoscalerSettings(**{**BUILTIN, **given})
