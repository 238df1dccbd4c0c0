"""The processes know every variable that the chart sets, and accept its value."""

import json
import re

import pytest

from tests.helm.keys import LEAVES, SCHEMA, nested
from tests.helm.rendering import EVERYTHING, VARIANTS, environment, merged, processes, templates
from tests.helm.settings_schema import CLASSES, settings_class, wanted

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


def test_settings_of_a_role_are_typed_as_its_process_reads_them():
    """Otherwise run `python -m tests.helm.settings_schema`."""
    assert wanted() == SCHEMA


@pytest.mark.parametrize("component", ["gateway", "decode"])
def test_numbers_and_lists_arrive_as_they_were_meant(component, monkeypatch):
    """Helm's engine prints whole numbers above a million as 1.34217728e+08, which no process takes."""
    settings = {
        "gateway": {"MAX_BODY_BYTES": 134_217_728, "KEEP_ALIVE_S": 2.5, "CORS_ORIGINS": ["https://a", "https://b"]},
        "decode": {"MAX_RUNNING": 1_000_000, "LATENT_NORM_EPS": 1e-7, "KV_DTYPE": "fp8"},
    }[component]
    for name, value in variables(processes({component: {"settings": settings}})[component]).items():
        monkeypatch.setenv(name, value)
    read = settings_class(component)()
    found = {name: getattr(read, name.lower()) for name in settings}
    assert found == {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def test_no_large_number_is_written_with_an_exponent():
    numbers = ("integer", "number", ["integer", "null"])
    unbounded = [path for path, schema in LEAVES.items() if schema.get("type") in numbers and "maximum" not in schema]
    large = [nested(path, 20_000_000) for path in unbounded]
    text = "".join(templates(merged(EVERYTHING, *large, {"gateway": {"requestSeconds": 30_000_000}})).values())
    lines = text.splitlines()
    assert sum("20000000" in line for line in lines) > 20
    assert [line for line in lines if re.search(r"[0-9]e\+", line)] == []


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
