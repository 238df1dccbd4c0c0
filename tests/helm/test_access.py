"""Processes may make only the connections that they need, and secrets appear only as mounted files."""

import json

import pytest
import yaml

from tests.helm.rendering import (
    EVERYTHING,
    FIXED,
    VARIANTS,
    environment,
    find,
    merged,
    objects,
    pods,
    processes,
    templates,
)

# (caller, called, port): the calls that a request causes, and those of the autoscaler and `helm test`.
ARROWS = {
    *((("gateway"), role, 50051) for role in ("tokenizer", "vision", "prefill", "decode")),
    *(((role), "expert", port) for role in ("prefill", "decode") for port in (50051, 50053)),
    *(((role), "redis-0", 6379) for role in ("gateway", "vision", "prefill", "decode")),
    ("decode", "prefill", 50051),  # blocks that the store cannot hold
    ("autoscaler", "gateway", 50052),
    ("smoke", "gateway", 8000),
}
METRICS = 9090


def policies(values="defaults"):
    found = (one for one in objects(values) if one["kind"] == "NetworkPolicy")
    return {one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: one["spec"] for one in found}


def arrows(values, direction):
    """Return (caller, called, port) of all rules between our own pods, from the policies of one end."""
    found = set()
    for component, policy in policies(values).items():
        for rule in policy[direction]:
            for peer in rule.get("from" if direction == "ingress" else "to", []):
                if "podSelector" in peer:
                    other = peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
                    ends = (other, component) if direction == "ingress" else (component, other)
                    found |= {(*ends, port["port"]) for port in rule["ports"]}
    return found


def outside(component, values="defaults"):
    """Return the ports that a component may call at any address."""
    return {
        port["port"] for rule in policies(values)[component]["egress"] if "to" not in rule for port in rule["ports"]
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pod_has_a_policy_for_both_directions(variant):
    assert set(policies(variant)) == set(pods(variant))
    assert all(set(policy["policyTypes"]) == {"Ingress", "Egress"} for policy in policies(variant).values())


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_only_the_peers_of_the_architecture(direction):
    assert arrows("defaults", direction) == ARROWS


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_one_end_lets_out_the_other_lets_in(variant):
    there = pods(variant)
    assert arrows(variant, "ingress") >= {a for a in arrows(variant, "egress") if a[1] in there}
    assert arrows(variant, "egress") >= {a for a in arrows(variant, "ingress") if a[0] in there}


def test_shards_of_one_replica_may_call_each_other():
    between = {("prefill", "prefill", 50051), ("decode", "decode", 50051)}
    assert arrows(EVERYTHING, "ingress") & between == between


@pytest.mark.parametrize("variant", VARIANTS)
def test_metrics_are_read_from_the_monitoring_namespace_only(variant):
    namespace = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    for component in processes(variant):
        rules = [
            rule for rule in policies(variant)[component]["ingress"] if METRICS in {p["port"] for p in rule["ports"]}
        ]
        assert [rule["from"] for rule in rules] == [namespace], component


def test_the_gateway_is_reached_from_the_ingress():
    def sources(values):
        rules = policies(values)["gateway"]["ingress"]
        return [rule.get("from") for rule in rules if {"port": 8000, "protocol": "TCP"} in rule["ports"]][-1]

    assert sources("defaults") is None
    assert sources(FIXED) == FIXED["networkPolicy"]["gatewayFrom"]


def test_who_calls_outside():
    assert {component for component in policies() if outside(component)} == {"autoscaler", "secrets"}
    assert outside("autoscaler") == outside("secrets") == {443, 6443}
    # The trace collector, an external Redis and media from any host are allowed only where they are configured.
    assert outside("tokenizer", EVERYTHING) == {4318}
    assert outside("gateway", EVERYTHING) == {4318, 80, 443}
    assert outside("decode", FIXED) == {6380}
    sentinels = "redis+sentinel://a.example.com:26380;b.example.com/kimi/0"
    assert outside("decode", {"store": {"urls": [sentinels]}}) == {6379, 26380, 26379}
    assert outside("autoscaler", EVERYTHING) == {4318}
    assert outside("preload", merged({"model": EVERYTHING["model"]})) == {443}


def test_policies_can_be_left_to_others():
    assert not policies({"networkPolicy": {"enabled": False}})


def test_secrets_are_mounted_and_never_in_variables_or_arguments():
    for component, pod in pods(EVERYTHING).items():
        for one in [*pod.get("initContainers", []), *pod["containers"]]:
            values = [entry.get("valueFrom", {}) for entry in one.get("env", [])]
            assert not [value for value in values if "secretKeyRef" in value], component
            # The Job that fetches the model runs a foreign program, which may need variables.
            assert "envFrom" not in one or component == "preload"
    mounted = {v["secret"]["secretName"] for pod in pods(EVERYTHING).values() for v in pod["volumes"] if "secret" in v}
    assert mounted == {"tls", "redis", "mac", "keys", "smoke"}
    assert not [one for one in objects(EVERYTHING) if one["kind"] == "Secret"]


@pytest.mark.parametrize("component", ["gateway", "tokenizer", "vision", "prefill", "decode", "expert", "autoscaler"])
def test_every_process_has_the_certificate_and_probes_that_need_none(component):
    one = processes(EVERYTHING)[component]
    given = environment(one)
    mounts = {mount["name"]: mount for mount in one["volumeMounts"]}
    assert mounts["tls"] == {"name": "tls", "mountPath": "/secrets/tls", "readOnly": True}
    files = {name: given[f"MOONSHARD_TLS_{name}"] for name in ("CERT", "KEY", "CA", "NAME")}
    assert files == {
        "CERT": "/secrets/tls/tls.crt",
        "KEY": "/secrets/tls/tls.key",
        "CA": "/secrets/tls/ca.crt",
        "NAME": "moonshard",
    }
    if "grpc" in one["readinessProbe"]:
        assert given["MOONSHARD_HEALTH_LISTEN"] == "0.0.0.0:9001"
    assert not [name for name in environment(processes({"tls": {"enabled": False}})[component]) if "TLS" in name]


def test_nothing_that_is_secret_is_a_value():
    """Values name secrets; none contains one."""
    text = templates(EVERYTHING)
    loaded = [one for path, part in text.items() if path.endswith(".yaml") for one in yaml.safe_load_all(part) if one]
    dumped = json.dumps(loaded).lower()
    assert "begin certificate" not in dumped
    assert "begin private key" not in dumped
    assert find("StatefulSet", "redis-0", EVERYTHING)["spec"]["template"]["spec"]["volumes"][1]["secret"]
