"""Every key of values.yaml has an effect: no value is accepted and ignored."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.helm.keys import DEFAULTS, LEAVES, nested, present
from tests.helm.rendering import EVERYTHING, FIXED, merged, templates

LIMITED = {"gateway": {"keysSecret": "keys", "requestsPerMinute": 1}}

# Pattern of keys -> values without which these keys have no effect; the first pattern that matches counts.
BESIDE: list[tuple[str, dict[str, Any]]] = [
    (r"model\.volume\.reference", {"model": {"volume": {"kind": "oci", "reference": "k2:1"}}}),
    (r"service\.(nodePort|loadBalancerClass)", {"service": {"type": "LoadBalancer"}}),
    (r"model\.volume\.kind", {"model": {"volume": {"kind": "image"}}}),
    (r"model\.volume\.hostPath", {"model": {"volume": {"kind": "hostPath", "hostPath": "/other"}}}),
    (r"model\.preload\.", {"model": EVERYTHING["model"]}),
    (r"store\.limitsUrl", merged(FIXED, LIMITED, {"store": {"limitsUrl": "redis://limits:1/0"}})),
    (r"store\.caSecret", FIXED),
    (r"autoscaling\.kedaNamespace|vision\.targetCpuPercent", EVERYTHING),
    (r"gateway\.(\w+PerMinute|smokeKeySecret)|redis\.limits", LIMITED),
    (r"publicPaths", {"ingress": EVERYTHING["ingress"]}),
    *((rf"{key}\.", {key: EVERYTHING[key]}) for key in ("ingress", "httpRoute", "tracing")),
    (r"monitoring\.(labels|scrapeSeconds)", {"monitoring": EVERYTHING["monitoring"]}),
]

# Other values of keys whose type does not suggest one: by path, or by the last part of the path.
SAMPLES: dict[str, Any] = {
    "image.repository": "example.com/moonshard",
    "gpuResource": "amd.com/gpu",
    "model.path": "/models/another",
    "model.volume.mountPath": "/models/kimi-k2.6",
    "model.volume.hostPath": "/disk",
    "store.urls": ["redis://other:1/0"],
    "store.limitsUrl": "redis://other:2/0",
    "numBlocks": 7,
    "httpRoute.parentRefs": [{"name": "another"}],
    "networkPolicy.gatewayFrom": [{"podSelector": {"matchLabels": {"a": "b"}}}],
    "tracing.endpoint": "http://other:4319/v1/traces",
    **dict.fromkeys(("image.digests.slim", "image.digests.torch"), f"sha256:{'0' * 64}"),
    "publicPaths": ["/v1", "/docs"],
    "networkPolicy.dnsBlocks": ["10.0.0.10/32"],
    "networkPolicy.dnsPorts": [5353],
    "networkPolicy.apiServerPorts": [16443],
    "securityContext": {"runAsUser": 12345},
    "pods.env": [{"name": "A", "value": "b"}],
    "pods.volumes": [{"name": "more", "emptyDir": {}}],
    "pods.mounts": [{"name": "more", "mountPath": "/more"}],
    "pods.initContainers": [{"name": "more", "image": "busybox:1"}],
    "annotations": {"a": "b"},
    "labels": {"a": "b"},
    **dict.fromkeys(("size", "shm"), "77Gi"),
    **dict.fromkeys(("sampleRatio", "layerRatio"), 0.5),
}

# Keys of every role. The role's name is part of the value, so that one rendering shows the effect in all roles.
PLACEMENT = {
    **dict.fromkeys(("requests", "limits"), lambda path: {f"example.com/{path}": "1"}),
    "nodeSelector": lambda path: {"mark": path},
    "pod": lambda path: {"annotations": {"mark": path}},
    "tolerations": lambda path: [{"key": path, "operator": "Exists"}],
    **dict.fromkeys(("nodeAffinity", "podAffinity", "podAntiAffinity"), lambda path: {"mark": path}),
}
PLACED = [path for path in LEAVES if path.rpartition(".")[2] in PLACEMENT]

# Keys that change no rendered object, with their effect.
NO_EFFECT = {
    "expert.scaleToZero": "admits expert.minReplicas: 0, which validations.yaml refuses without it",
    "global": "what an umbrella chart passes to all its charts",
}


def another(path: str, schema: Mapping[str, Any], now: Any) -> Any:
    """Return a value that the schema admits, other than the present one."""
    key = path.rpartition(".")[2]
    if path in SAMPLES or key in SAMPLES:
        return SAMPLES.get(path, SAMPLES.get(key))
    if key == "settings":
        return {name: another(name, part, None) for name, part in schema["properties"].items()}
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != now)
    of_type = {"boolean": lambda: not now, "string": lambda: "another", "array": lambda: ["another"]}
    return of_type.get(schema["type"], lambda: max(7, schema.get("minimum", 7)) if now is None else now + 1)()


@functools.cache
def before(values: str) -> dict[str, str]:
    """Render these values, once for all keys that start from them."""
    return templates(json.loads(values))


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in {*NO_EFFECT, *PLACED}])
def test_every_key_has_an_effect(path):
    values = next((beside for pattern, beside in BESIDE if re.match(pattern, path)), {})
    wanted = another(path, LEAVES[path], present(merged(DEFAULTS, values), path))
    text = templates(merged(values, nested(path, wanted)))
    if path.endswith(".settings"):
        everything = "".join(text.values())
        assert [name for name in wanted if f"MOONSHARD_{name}," not in everything] == []
    else:
        is_ignored = text == before(json.dumps(values))
        assert not is_ignored


def test_every_role_has_its_resources_and_its_place():
    marks = [nested(path, PLACEMENT[path.rpartition(".")[2]](path)) for path in PLACED]
    text = "".join(templates(merged(LIMITED, *marks)).values())
    assert len(PLACED) >= 7 * 8
    assert [path for path in PLACED if not re.search(rf"[ /]{re.escape(path)}\b", text)] == []
