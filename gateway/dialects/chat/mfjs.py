"""MFJS, the part of JSON schema that hosted Kimi accepts: looked at only under the policy `fixed`."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from services.runtime.errors import InvalidRequest

MAX_SCHEMA_BYTES = 15 * 1024
REFUSED = frozenset(
    {"allOf", "oneOf", "not", "const", "pattern", "format", "multipleOf", "uniqueItems", "prefixItems"}
    | {"exclusiveMinimum", "exclusiveMaximum"}
)


def refuse_unless_mfjs(schema: Mapping[str, Any], field: str) -> None:
    """Raise InvalidRequest that names the place and the keyword."""
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"{field}: more than {MAX_SCHEMA_BYTES} bytes", field=field)
    for path, inner in _schemas(schema, field):
        if complaint := _complaint(inner):
            raise InvalidRequest(f"{path}: {complaint}", field=path)


def _complaint(schema: Mapping[str, Any]) -> str | None:
    if refused := sorted(REFUSED & schema.keys()):
        return f"{refused[0]} is not allowed for this model"
    if "$ref" in schema:
        target = schema["$ref"]
        if len(schema) > 1:
            return "$ref stands alone"
        root = isinstance(target, str) and (target == "#" or target.removeprefix("#/$defs/").isidentifier())
        return None if root else "$ref leads to # or into the $defs of the root"
    if isinstance(schema.get("items"), list):
        return "items is one schema"
    branches = schema.get("anyOf")
    for branch in branches if isinstance(branches, list) else ():
        if not isinstance(branch, dict) or not branch.keys() & {"type", "$ref"}:
            return "every branch of anyOf has a type"
    return None


def _schemas(schema: Mapping[str, Any], field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return the schema and all inside it, each with its place."""
    open_schemas = [(field, schema)]
    while open_schemas:
        path, one = open_schemas.pop()
        yield path, one
        for key in ("properties", "$defs"):
            for name, inner in one[key].items() if isinstance(one.get(key), dict) else ():
                open_schemas += [(f"{path}.{key}.{name}", inner)] if isinstance(inner, dict) else []
        for key in ("items", "additionalProperties"):
            open_schemas += [(f"{path}.{key}", one[key])] if isinstance(one.get(key), dict) else []
        for index, inner in enumerate(one["anyOf"]) if isinstance(one.get("anyOf"), list) else ():
            open_schemas += [(f"{path}.anyOf.{index}", inner)] if isinstance(inner, dict) else []
