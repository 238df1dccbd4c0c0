"""The chart through Helm's own engine: values in, objects out."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "moonshard"
OVERLAYS = sorted(path.stem.removeprefix("values-") for path in CHART.glob("values-*.yaml"))
RELEASE, NAMESPACE = "moonshard", "ai"
SHARDED = {"prefill": {"shards": 2}, "decode": {"shards": 3}}

# Values that the overlays leave at their defaults, so that every template line is rendered in one of the variants.
EVERYTHING = {
    "imagePullSecrets": ["registry"],
    "model": {"preload": {"enabled": True, "image": "hf:1", "command": ["hf", "download"], "existingSecret": "hf"}},
    "gateway": {
        "keysSecret": "keys",
        "smokeKeySecret": "smoke",
        "requestsPerMinute": 60,
        "targetOpenStreams": 64,
        "settings": {"MEDIA_HOSTS": ["*"]},
    },
    "vision": {"minReplicas": 1, "gpus": 1},
    **SHARDED,
    "autoscaling": {"mode": "keda"},
    "store": {"passwordSecret": "redis", "macSecret": "mac"},
    "redis": {"instances": 2},
    "tls": {"enabled": True, "existingSecret": "tls"},
    "ingress": {"enabled": True, "host": "api.example.com", "className": "nginx", "tlsSecret": "web"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "public"}], "hostnames": ["api.example.com"]},
    "monitoring": {"podMonitor": True, "rules": True, "dashboards": True, "labels": {"release": "prometheus"}},
    "tracing": {"endpoint": "http://collector.monitoring:4318/v1/traces", "layerRatio": 0.01},
}
FIXED = {
    "autoscaling": {"mode": "off"},
    **{role: {"minReplicas": 1} for role in ("vision", "prefill", "decode")},
    "expert": {"shards": 0},
    "store": {"urls": ["rediss://redis.example.com:6380/0"], "caSecret": "ca"},
    "networkPolicy": {"gatewayFrom": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
}


@functools.cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def overlay(name: str) -> dict[str, Any]:
    return helm_python.values_from_yaml((CHART / f"values-{name}.yaml").read_text())


VARIANTS: Mapping[str, dict[str, Any]] = {
    "defaults": {},
    **{name: overlay(name) for name in OVERLAYS},
    "everything": EVERYTHING,
    "fixed": FIXED,
}


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Merge values as Helm merges files: later ones win."""
    result: dict[str, Any] = {}
    for more in values:
        for key, value in more.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def templates(values: Mapping[str, Any]) -> dict[str, str]:
    """Validate the values by the schema, as an install does; return the rendered text of each template."""
    chart().validate_schema(dict(values))
    rendered = chart().render(dict(values), name=RELEASE, namespace=NAMESPACE)
    return {path.removeprefix("moonshard/templates/"): text for path, text in rendered.items()}


@functools.cache
def _objects(values: str) -> tuple[dict[str, Any], ...]:
    texts = [text for path, text in templates(json.loads(values)).items() if path.endswith(".yaml")]
    return tuple(one for text in texts for one in yaml.load_all(text, yaml.CSafeLoader) if one)


def objects(values: Mapping[str, Any] | str = "defaults") -> tuple[dict[str, Any], ...]:
    """Return all objects of a release with these values or the variant of that name. Cached: do not change them."""
    return _objects(json.dumps(VARIANTS[values] if isinstance(values, str) else values, sort_keys=True))


def find(kind: str, name: str = "", values: Mapping[str, Any] | str = "defaults") -> dict[str, Any]:
    """Return the object of this kind that is called as the release, followed by `-name` if a name is given."""
    full = f"{RELEASE}-{name}" if name else RELEASE
    (found,) = [one for one in objects(values) if one["kind"] == kind and one["metadata"]["name"] == full]
    return found


def names(kind: str, values: Mapping[str, Any] | str = "defaults") -> set[str]:
    """Return the names of all objects of a kind, without the release's name."""
    found = (one["metadata"]["name"] for one in objects(values) if one["kind"] == kind)
    return {name.removeprefix(RELEASE).removeprefix("-") for name in found}


def pods(values: Mapping[str, Any] | str = "defaults") -> dict[str, dict[str, Any]]:
    """Return the pod spec of every component that has pods."""
    found = {}
    for one in objects(values):
        if one["kind"] in {"Deployment", "StatefulSet", "Job"}:
            template = one["spec"]["template"]
            found[template["metadata"]["labels"]["app.kubernetes.io/component"]] = template["spec"]
        elif one["kind"] == "Pod":
            found[one["metadata"]["labels"]["app.kubernetes.io/component"]] = one["spec"]
    return found


def processes(values: Mapping[str, Any] | str = "defaults") -> dict[str, dict[str, Any]]:
    """Return the container of each of our long-running processes, by component."""
    others = {"smoke", "preload", "secrets"}
    ours = {name: pod for name, pod in pods(values).items() if name not in others and not name.startswith("redis")}
    return {name: pod["containers"][0] for name, pod in ours.items()}


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a container; a value from a field of the pod is given as the field's path."""
    return {
        entry["name"]: entry["value"] if "value" in entry else _source(entry["valueFrom"]) for entry in container["env"]
    }


def _source(found: Mapping[str, Any]) -> str:
    """Of a variable that only the pod knows: the field or the resource."""
    field = found.get("fieldRef", {}).get("fieldPath") or found["resourceFieldRef"]["resource"]
    return str(field)
