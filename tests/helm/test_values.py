"""values.yaml and its schema: every key has a comment; a wrong value is refused, and the message names it."""

import itertools
import re
from collections.abc import Mapping

import helm_python
import pytest

from tests.helm.keys import DEFAULTS, SCHEMA, nested, present, resolved
from tests.helm.rendering import CHART, VARIANTS, chart, objects, templates


def test_the_schema_knows_the_keys_of_the_file_and_no_others():
    def keys(values, schema, prefix=""):
        properties = resolved(schema).get("properties")
        if not properties:
            return set()
        assert set(values) <= set(properties), prefix
        below = [
            keys(values[key], properties[key], f"{prefix}{key}.") for key in values if isinstance(values[key], dict)
        ]
        return {f"{prefix}{key}" for key in properties} | set().union(*below)

    optional = re.compile(
        r"\.(requests|limits|nodeAffinity|podAffinity|podAntiAffinity|numBlocks|settings\..+|pod\..+|supplementalGroups|localhostProfile)$|^global$"
    )
    missing = {key for key in keys(DEFAULTS, SCHEMA) if present(DEFAULTS, key) is None and not optional.search(key)}
    assert missing == set()


def test_every_object_of_the_schema_refuses_unknown_keys():
    # Maps with free keys, such as labels, give the type of their values; these are Kubernetes' own types.
    affinity = {"nodeAffinity", "podAffinity", "podAntiAffinity"}
    kubernetes = {*affinity, "namespaceSelector", "podSelector", "ipBlock", "global", "named"}

    def check(schema, key=""):
        if not isinstance(schema, Mapping):
            return
        if schema.get("type") == "object" and key not in kubernetes:
            assert "additionalProperties" in schema, key
            assert schema["additionalProperties"] is False or "properties" not in schema, key
        for name, part in schema.items():
            check(part, name)

    check(SCHEMA)


def test_every_key_has_a_comment():
    """The comment stands on the key's line or above it. Fields that Kubernetes defines need none."""
    plain = {"requests", "limits", "resources", "nodeSelector", "tolerations", "affinity", "annotations", "enabled"}
    plain |= {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "seccompProfile"}
    lines = (CHART / "values.yaml").read_text().splitlines()
    explained, wanting = set(plain), []
    for above, line in itertools.pairwise(["", *lines]):
        key = re.match(r" *([A-Za-z]+): ", line)
        if key and ("#" in line or above.lstrip().startswith("#")):
            explained.add(key[1])
        elif key and key[1] not in explained:
            wanting.append(line)
    assert wanting == []


WRONG = [
    ("gateway.replicas", 0, "minimum"),
    ("gateway.replicas", "two", "integer"),
    ("gateway.replica", 2, "replica"),
    ("gateway.drainSeconds", -1, "minimum"),
    ("gateway.targetCpuPercent", 101, "maximum"),
    ("gateway.settings", {"PARAM_POLICI": "kvv"}, "PARAM_POLICI"),
    ("gateway.settings", {"MODEL_NAME": "x"}, "MODEL_NAME"),
    ("gateway.settings", {"PARAM_POLICY": ["kvv"]}, "PARAM_POLICY"),
    ("gateway.settings", {"MAX_BODY_BYTES": "64 MiB"}, "MAX_BODY_BYTES"),
    ("gateway.settings", {"MAX_BODY_DEPTH": 7}, "MAX_BODY_DEPTH"),
    ("gateway.settings", {"CORS_ORIGINS": "https://a"}, "CORS_ORIGINS"),
    ("vision.settings", {"IMAGE_REPAIR": "no"}, "IMAGE_REPAIR"),
    ("autoscaling.settings", {"MODE": "off"}, "MODE"),
    ("gateway.apiKeys", ["sk-1"], "apiKeys"),
    ("decode.maxReplicas", 0, "minimum"),
    ("decode.shards", 1.5, "integer"),
    ("decode.numBlocks", 0, "minimum"),
    ("decode.gpus", 17, "maximum"),
    ("decode.shm", "8 GB", "pattern"),
    ("expert.shards", -1, "minimum"),
    ("autoscaling.mode", "manual", "builtin"),
    ("autoscaling.mode", False, "builtin"),
    ("autoscaling.idleSeconds", 0, "idleSeconds"),
    ("store.password", "secret", "password"),
    ("store.urls", ["http://redis"], "pattern"),
    ("publicPaths", ["/"], "pattern"),
    ("publicPaths", [], "minItems"),
    ("tls.existingSecret", "My Secret", "pattern"),
    ("tls.certificate", "-----BEGIN", "certificate"),
    ("model.volume.kind", "nfs", "claim"),
    ("model.path", "models", "pattern"),
    ("model.volume.size", "big", "pattern"),
    ("logLevel", "trace", "debug"),
    ("service.port", 70000, "maximum"),
    ("networkPolicy.gatewayFrom", [{}], "minProperties"),
    ("networkPolicy.gatewayFrom", [{"podselector": {}}], "podselector"),
    ("httpRoute.parentRefs", [{"namespace": "a"}], "name"),
    ("tracing.sampleRatio", 2, "maximum"),
    ("tracing.endpoint", "collector:4318", "pattern"),
    ("fullnameOverride", "Upper", "pattern"),
    ("image.tag", "a b", "pattern"),
    ("image.digests.slim", "sha256:1234", "pattern"),
    ("pods.labels", {"a": 1}, "labels"),
    ("pods.securityContext", {"runAsNonRoot": False}, "runAsNonRoot"),
    ("pods.securityContext", {"privileged": True}, "privileged"),
    ("expert.pod", {"runtimeClass": "nvidia"}, "runtimeClass"),
    ("decode.pod", {"env": [{"value": "1"}]}, "name"),
    ("networkPolicy.apiServerPorts", [], "minItems"),
    ("networkPolicy.dnsBlocks", ["kube-dns"], "pattern"),
    ("vison", {}, "vison"),
]


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[f"{path}={value}" for path, value, _ in WRONG])
def test_a_wrong_value_is_refused_by_the_schema(path, value, said):
    with pytest.raises(helm_python.HelmValuesError) as refusal:
        chart().validate_schema(nested(path, value))
    message = str(refusal.value)
    assert path.split(".")[-1] in message or said in message
    assert path.split(".")[0] in message


IMPOSSIBLE = [
    ({"publicPaths": ["/v1", "/metrics"]}, "metrics are read from the pods, by monitoring alone"),
    ({"redis": {"resources": {"limits": None}}}, "redis.resources.limits.memory is missing"),
    ({"decode": {"minReplicas": 3}}, "decode.minReplicas (3) is more than decode.maxReplicas (2)"),
    ({"autoscaling": {"mode": "off"}}, "nobody would wake vision from zero: set vision.minReplicas to 1 or more"),
    ({"gateway": {"replicas": 9}}, "gateway.replicas (9) is more than gateway.maxReplicas (8)"),
    ({"gateway": {"maxReplicas": 2, "targetOpenStreams": 8}}, "gateway.targetOpenStreams has no effect"),
    ({"expert": {"minReplicas": 0}}, "say so by expert.scaleToZero: true"),
    ({"expert": {"scaleToZero": True}}, "expert.minReplicas keeps some"),
    ({"gateway": {"wakeSeconds": 3600}}, "has to be less than gateway.requestSeconds"),
    ({"tls": {"enabled": False, "existingSecret": "tls"}}, "tls.existingSecret would be ignored"),
    ({"model": {"volume": {"kind": "hostPath"}}}, "name the folder in model.volume.hostPath"),
    ({"model": {"volume": {"hostPath": "/a"}}}, "model.volume.hostPath would be ignored"),
    ({"model": {"volume": {"kind": "image", "existingClaim": "a"}}}, "model.volume.existingClaim would be ignored"),
    ({"model": {"volume": {"kind": "oci"}}}, "model.volume.kind oci and model.volume.reference need each other"),
    ({"service": {"nodePort": 30080}}, "service.nodePort would be ignored: service.type is ClusterIP"),
    (
        {"service": {"loadBalancerClass": "a/b"}},
        "service.loadBalancerClass would be ignored: service.type is ClusterIP",
    ),
    ({"model": {"path": "/elsewhere/k2"}}, "does not lie in model.volume.mountPath"),
    ({"model": {"volume": {"kind": "image"}, "preload": {"enabled": True}}}, "model.preload fills a claim"),
    ({"model": {"preload": {"enabled": True}}}, "needs model.preload.image and model.preload.command"),
    ({"store": {"urls": ["redis://:pw@redis:6379/0"]}}, "values are no place for it, use store.passwordSecret"),
    ({"store": {"limitsUrl": "redis://a:6379/0"}}, "store.limitsUrl would be ignored"),
    (
        {"store": {"urls": ["redis://a:1/0"]}, "gateway": {"keysSecret": "k", "requestsPerMinute": 1}},
        "limits of keys need store.limitsUrl",
    ),
    (
        {"store": {"limitsUrl": "redis://a:1/0"}, "gateway": {"keysSecret": "k", "requestsPerMinute": 1}},
        "store.limitsUrl is set but store.urls is not",
    ),
    ({"store": {"caSecret": "ca"}}, "store.caSecret would be ignored"),
    ({"gateway": {"requestsPerMinute": 1}}, "need gateway.keysSecret"),
    ({"gateway": {"smokeKeySecret": "k"}}, "gateway.smokeKeySecret would be ignored"),
    ({"ingress": {"enabled": True}}, "ingress.enabled needs ingress.host"),
    ({"httpRoute": {"enabled": True}}, "httpRoute.enabled needs httpRoute.parentRefs"),
]


@pytest.mark.parametrize(("values", "sentence"), IMPOSSIBLE, ids=[sentence for _, sentence in IMPOSSIBLE])
def test_an_impossible_combination_fails_with_a_sentence(values, sentence):
    chart().validate_schema(values)
    with pytest.raises(helm_python.HelmRenderError) as failure:
        templates(values)
    assert sentence in str(failure.value)


def test_every_validation_is_tried():
    text = (CHART / "templates" / "validations.yaml").read_text()
    assert text.count("{{- fail ") == len(IMPOSSIBLE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_renders_for_other_releases(variant):
    text = "".join(chart().render(VARIANTS[variant], name="other", namespace="elsewhere").values())
    assert "other-moonshard-gateway" in text
    assert objects(variant)
