"""The keys of values.yaml and of its schema."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests.helm.rendering import CHART

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


# Maps that are changed as a whole here: other tests cover their keys.
WHOLE = {"settings", "pod", "securityContext"}


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def resolved(schema: Mapping[str, Any]) -> dict[str, Any]:
    return SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else dict(schema)


def leaves(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key that has no named keys below it, with its schema."""
    for key, part in schema["properties"].items():
        full = resolved(part)
        if full.get("properties") and key not in WHOLE:
            yield from leaves(full, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", full


def present(values: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


LEAVES = dict(leaves(SCHEMA))
