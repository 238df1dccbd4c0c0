"""The part of values.schema.json that says what `settings` of a role takes, from the settings class of its process.

`python -m tests.helm.settings_schema` writes it; a test fails when it is stale.
"""

import importlib
import json
from typing import Any

from tests.helm.rendering import CHART, VARIANTS, environment, processes

CLASSES = {
    "gateway": "gateway.settings.GatewaySettings",
    "tokenizer": "services.tokenizer.settings.TokenizerSettings",
    "vision": "services.vision.settings.VisionSettings",
    "prefill": "services.attention.settings.AttentionSettings",
    "decode": "services.attention.settings.AttentionSettings",
    "expert": "services.expert.settings.ExpertSettings",
    "autoscaler": "services.autoscaler.settings.AutoscalerSettings",
}
SECTIONS = {"autoscaler": "autoscaling"}
# What no value may set: a supervisor's words, what follows from the pod's name, files that would need a mount.
WITHHELD = {"HEALTH_ID", "HEALTH_LISTEN", "CONTROL", "API_SERVER", "SHARD", "STORE_CERT", "STORE_KEY"}
KEPT = ("type", "enum", "items", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
WIDTH = 120


def settings_class(component: str) -> Any:
    """The settings class of the process of a component."""
    module, _, name = CLASSES[component].rpartition(".")
    return getattr(importlib.import_module(module), name)


def set_by_the_chart(component: str) -> set[str]:
    """Variables that the chart itself sets in some variant, without MOONSHARD_."""
    found = {"NUM_BLOCKS"}  # by numBlocks, which no variant sets
    for variant, values in VARIANTS.items():
        container = processes(variant).get(component)
        if container is not None:
            added = set(values.get(SECTIONS.get(component, component), {}).get("settings", {}))
            found |= {name.removeprefix("MOONSHARD_") for name in environment(container)} - added
    return found


def settings_schema(component: str) -> dict[str, Any]:
    """Name -> schema of every variable that `settings` of this component takes."""
    fields = settings_class(component).model_json_schema()["properties"]
    own = set_by_the_chart(component) | WITHHELD
    return {name.upper(): _bare(field) for name, field in sorted(fields.items()) if name.upper() not in own}


def wanted() -> dict[str, Any]:
    """values.schema.json as it should be."""
    schema: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
    for component in CLASSES:
        section = schema["properties"][SECTIONS.get(component, component)]["properties"]
        section["settings"] = {
            "type": "object",
            "additionalProperties": False,
            "properties": settings_schema(component),
        }
    return schema


def text(value: Any, indent: int = 0, before: int = 0) -> str:
    """JSON in which a value that fits on its line, behind so many characters, stays there."""
    line = json.dumps(value)
    if indent + before + len(line) < WIDTH or not isinstance(value, dict | list) or not value:
        return line
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{pad}{json.dumps(key)}: {text(part, indent + 2, len(key) + 4)}" for key, part in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{' ' * indent}}}"
    return "[\n" + ",\n".join(f"{pad}{text(part, indent + 2)}" for part in value) + f"\n{' ' * indent}]"


def _bare(field: dict[str, Any]) -> dict[str, Any]:
    """What Helm checks: type and bounds. A setting that may be absent is left out instead of being null."""
    chosen = next((one for one in field.get("anyOf", []) if one.get("type") != "null"), field)
    return {key: chosen[key] for key in KEPT if key in chosen and not ("enum" in chosen and key == "type")}


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(text(wanted()) + "\n")
