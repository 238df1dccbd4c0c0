"""The processes know every variable that the chart sets, and accept its value."""

import importlib
import json

import pytest

from tests.helm.keys import SCHEMA
from tests.helm.rendering import EVERYTHING, VARIANTS, environment, processes

CLASSES = {
    "gateway": "gateway.settings.GatewaySettings",
    "tokenizer": "services.tokenizer.settings.TokenizerSettings",
    "vision": "services.vision.settings.VisionSettings",
    "prefill": "services.attention.settings.AttentionSettings",
    "decode": "services.attention.settings.AttentionSettings",
    "expert": "services.expert.settings.ExpertSettings",
    "autoscaler": "services.autoscaler.settings.AutoscalerSettings",
}
MODULES = {
    "gateway": "gateway",
    **dict.fromkeys(("prefill", "decode"), "services.attention"),
    **{name: f"services.{name}" for name in ("tokenizer", "vision", "expert", "autoscaler")},
}
# Values that Kubernetes fills in when the pod runs.
DOWNWARD = {
    "metadata.name": "moonshard-decode-5",
    "metadata.namespace": "ai",
    "metadata.labels['apps.kubernetes.io/pod-index']": "5",
}


@pytest.fixture(autouse=True)
def a_gpu_and_a_key(monkeypatch):
    """Pretend that a GPU and a key exist: pods that need them get them."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("services.runtime.settings.open_sealer", lambda path: None)


def settings_class(component):
    module, _, name = CLASSES[component].rpartition(".")
    return getattr(importlib.import_module(module), name)


def variables(container):
    given = environment(container)
    return {name: DOWNWARD.get(value, value) for name, value in given.items() if name.startswith("MOONSHARD_")}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("component", CLASSES)
@pytest.mark.slow
def test_every_variable_is_known_and_its_value_taken(component, variant, monkeypatch):
    container = processes(variant).get(component)
    if container is None:
        absent = {"vision", "prefill", "expert", "autoscaler"}
        assert component in absent
        return
    kind = settings_class(component)
    given = variables(container)
    known = {f"MOONSHARD_{name.upper()}" for name in kind.model_fields}
    assert set(given) - known == set()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = kind()
    assert settings.instance == "moonshard-decode-5"
    assert container["args"] == [MODULES[component]]


def test_a_pod_finds_its_shard_and_those_after_it(monkeypatch):
    """With three shards a replica, ordinal 5 is the last shard of the second replica; ordinal 3 is its engine."""
    given = variables(processes(EVERYTHING)["decode"])
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert settings_class("decode")().shard == 2
    monkeypatch.setenv("MOONSHARD_ORDINAL", "3")
    engine = settings_class("decode")()
    assert engine.shard == 0
    assert list(engine.further_shards) == [
        f"moonshard-decode-{ordinal}.moonshard-decode.ai.svc:50051" for ordinal in (4, 5)
    ]


@pytest.mark.parametrize("component", [name for name in CLASSES if name != "autoscaler"])
def test_further_settings_exist_and_are_not_set_twice(component):
    further = {f"MOONSHARD_{name}" for name in SCHEMA["properties"][component]["properties"]["settings"]["properties"]}
    known = {f"MOONSHARD_{name.upper()}" for name in settings_class(component).model_fields}
    assert further <= known
    for variant in VARIANTS:
        if component in processes(variant):
            added = {f"MOONSHARD_{name}" for name in VARIANTS[variant].get(component, {}).get("settings", {})}
            assert not (further - added) & set(variables(processes(variant)[component]))


def test_the_autoscaler_knows_every_role_that_it_owns():
    roles = json.loads(variables(processes()["autoscaler"])["MOONSHARD_ROLES"])
    assert roles == {
        "vision": {"workload": "deployment/moonshard-vision", "shards": 1, "min": 0, "max": 2, "target": 4},
        "prefill": {"workload": "statefulset/moonshard-prefill", "shards": 1, "min": 0, "max": 2, "target": 8192},
        "decode": {"workload": "statefulset/moonshard-decode", "shards": 1, "min": 0, "max": 2, "target": 32},
        "expert": {"workload": "statefulset/moonshard-expert", "shards": 4, "min": 1, "max": 2, "target": 128},
    }
    # An HPA and the autoscaler never own the same workload.
    assert "vision" not in json.loads(variables(processes(EVERYTHING)["autoscaler"])["MOONSHARD_ROLES"])
