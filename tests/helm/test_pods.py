"""Additions to pods (`pods` for all, `pod` for one role), and the chart in other clusters and charts."""

import pytest
from helm_python import HelmValuesError

from tests.helm.rendering import (
    EVERYTHING,
    VARIANTS,
    chart,
    environment,
    find,
    merged,
    names,
    objects,
    pods,
    processes,
    templates,
)
from tests.helm.test_objects import validator

OURS = ("gateway", "tokenizer", "vision", "prefill", "decode", "expert", "autoscaler")
KEYS = {**{role: role for role in OURS}, "autoscaler": "autoscaling", "redis-0": "redis"}
POD = {
    "annotations": {"example.com/scrape": "yes"},
    "labels": {"team": "inference"},
    "securityContext": {"runAsUser": 12345},
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "schedulerName": "volcano",
    "topologyKey": "topology.kubernetes.io/zone",
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    "mounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "initContainers": [{"name": "prepare", "image": "busybox:1.37", "command": ["true"]}],
}


def template(component, values):
    (found,) = [
        one["spec"]["template"]
        for one in objects(values)
        if one["kind"] in {"Deployment", "StatefulSet"}
        and one["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return found


def check(component, values):
    found = template(component, values)
    spec = found["spec"]
    (main,) = spec["containers"]
    assert found["metadata"]["annotations"] == POD["annotations"]
    assert found["metadata"]["labels"]["team"] == "inference"
    assert spec["securityContext"]["runAsUser"] == 12345
    assert spec["securityContext"]["runAsNonRoot"] is True, "what is not named stays"
    assert [spec[f"{key}Name"] for key in ("runtimeClass", "priorityClass", "scheduler")] == [
        "nvidia",
        "high",
        "volcano",
    ]
    assert spec["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"
    assert POD["tolerations"][0] in spec["tolerations"]
    assert POD["env"][0] in main["env"]
    assert POD["volumes"][0] in spec["volumes"]
    assert POD["mounts"][0] in main["volumeMounts"]
    assert spec["initContainers"][0] == POD["initContainers"][0]


@pytest.mark.parametrize("component", KEYS)
def test_all_pods_get_what_pods_say(component):
    check(component, {"pods": POD})


@pytest.mark.parametrize("component", KEYS)
def test_a_role_gets_what_its_pod_says_and_no_other(component):
    values = {KEYS[component]: {"pod": POD}}
    check(component, values)
    for other in set(KEYS) - {component}:
        assert "team" not in template(other, values)["metadata"]["labels"]


def test_a_role_wins_and_its_lists_are_added():
    first, second = {"name": "A", "value": "1"}, {"name": "B", "value": "2"}
    values = {
        "pods": {"priorityClassName": "low", "env": [first], "labels": {"all": "1"}},
        "decode": {"pod": {"priorityClassName": "high", "env": [second], "labels": {"one": "2"}}},
    }
    found = template("decode", values)
    assert found["spec"]["priorityClassName"] == "high"
    assert {"all": "1", "one": "2"}.items() <= found["metadata"]["labels"].items()
    assert environment(found["spec"]["containers"][0]).items() >= {("A", "1"), ("B", "2")}
    assert template("prefill", values)["spec"]["priorityClassName"] == "low"


def test_what_is_added_fits_kubernetes():
    for one in objects({"pods": POD}):
        if one["kind"] in {"Deployment", "StatefulSet", "Lease", "Pod"}:
            for version in ("1.28", "1.37"):
                assert not list(validator(version, one["kind"], one["apiVersion"]).iter_errors(one))


def test_init_containers_of_the_user_run_before_the_wait_for_the_model():
    values = merged(EVERYTHING, {"pods": {"initContainers": POD["initContainers"]}})
    assert [one["name"] for one in pods(values)["expert"]["initContainers"]] == ["prepare", "wait-for-model"]
    assert [one["name"] for one in pods(values)["gateway"]["initContainers"]] == ["prepare"]


def test_openshift_chooses_the_ids():
    """OpenShift's policy restricted-v2 refuses pods with user ids outside the namespace's range."""
    ids = dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"))
    for component, spec in pods({"pods": {"securityContext": ids}}).items():
        assert set(spec["securityContext"]) == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}, component


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chart_can_be_a_subchart(variant):
    """Helm passes `global` to every subchart."""
    assert templates(merged(VARIANTS[variant], {"global": {"region": "north"}})) == templates(VARIANTS[variant])


def test_images_by_digest():
    digests = {"slim": f"sha256:{'1' * 64}", "torch": f"sha256:{'2' * 64}"}
    found = processes({"image": {"digests": digests}})
    assert found["gateway"]["image"] == f"moonshard@{digests['slim']}"
    assert found["expert"]["image"] == f"moonshard@{digests['torch']}"


def test_the_model_in_an_image_of_its_own():
    values = {"model": {"volume": {"kind": "oci", "reference": "registry.example.com/kimi:1"}}}
    (volume,) = [one for one in pods(values)["decode"]["volumes"] if one["name"] == "model"]
    assert volume["image"] == {"reference": "registry.example.com/kimi:1", "pullPolicy": "IfNotPresent"}
    assert not names("PersistentVolumeClaim", values)
    one = find("StatefulSet", "decode", values)
    assert not list(validator("1.37", "StatefulSet", "apps/v1").iter_errors(one))


def test_the_service_account_of_pods_has_annotations():
    annotations = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}
    values = {"serviceAccount": {"annotations": annotations}}
    assert find("ServiceAccount", "", values)["metadata"]["annotations"] == annotations


def test_node_port_and_load_balancer_class():
    spec = find(
        "Service", "gateway", {"service": {"type": "LoadBalancer", "nodePort": 30080, "loadBalancerClass": "a/b"}}
    )
    assert spec["spec"]["ports"][0]["nodePort"] == 30080
    assert spec["spec"]["loadBalancerClass"] == "a/b"
    assert "nodePort" not in find("Service", "gateway")["spec"]["ports"][0]


def test_uninstall_leaves_no_lease():
    """The Lease is an object of the release, without a holder that an upgrade would reset."""
    assert "spec" not in find("Lease", "leader")
    assert environment(processes()["autoscaler"])["MOONSHARD_LEASE"] == "moonshard-leader"
    assert not names("Lease", {"autoscaling": {"mode": "keda"}})


def test_labels_of_ours_cannot_be_replaced():
    with pytest.raises(HelmValuesError, match=r"app\.kubernetes\.io/name"):
        chart().validate_schema({"pods": {"labels": {"app.kubernetes.io/name": "mine"}}})


def test_keys_without_one_for_helm_test_leave_the_test_out():
    values = {"gateway": {"keysSecret": "keys"}}
    assert not names("Pod", values)
    assert "gateway.smokeKeySecret" in templates(values)["NOTES.txt"]
    assert names("Pod", merged(values, {"gateway": {"smokeKeySecret": "smoke"}})) == {"smoke"}


def test_ports_of_the_network_policy():
    values = {"networkPolicy": {"apiServerPorts": [16443], "dnsPorts": [5353], "dnsBlocks": []}}
    (dns, *others) = find("NetworkPolicy", "autoscaler", values)["spec"]["egress"]
    assert [port["port"] for port in dns["ports"]] == [5353, 5353]
    assert len(dns["to"]) == 1
    assert [{"protocol": "TCP", "port": 16443}] in [rule["ports"] for rule in others]
    (dns, *_) = find("NetworkPolicy", "autoscaler")["spec"]["egress"]
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]
