"""JSON schemas as values: where schemas lie inside a schema, and how to walk over them."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

Schema = dict[str, Any]
Path = tuple[str, ...]
# Schemas that a value must meet all together, and the same without references and alternatives: one way to meet them.
Demands = tuple[Schema | bool, ...]
Way = tuple[Schema, ...]

NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")
# What llguidance enforces; the rest of the standard's keywords that demand anything it does not.
UNENFORCED = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems"),
        *("$dynamicRef", "$recursiveRef"),
    }
)


def rewritten(schema: Mapping[str, Any], change: Callable[[Schema, Path], Schema], path: Path = ()) -> Schema:
    """Every schema in it changed, the inner ones first. Values that are data, as in `enum`, are not touched."""

    def inner(value: object, *steps: str) -> object:
        return rewritten(value, change, (*path, *steps)) if isinstance(value, dict) else value

    new = dict(schema)
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            new[key] = {name: inner(one, key, name) for name, one in value.items()}
        elif key in LISTED and isinstance(value, list):
            new[key] = [inner(one, key, str(index)) for index, one in enumerate(value)]
        elif key in SINGLE:
            new[key] = inner(value, key)
    return change(new, path)


def paths_of(schema: Mapping[str, Any]) -> list[Path]:
    """The places of all schemas in it, inner ones first."""
    found: list[Path] = []

    def note(one: Schema, path: Path) -> Schema:
        found.append(path)
        return one

    rewritten(schema, note)
    return found


def replaced(schema: Mapping[str, Any], path: Path, new: Schema) -> Schema:
    """The same schema with another one in a place."""
    return rewritten(schema, lambda one, at: new if at == path else one)


def resolve(root: Schema, ref: str) -> Schema | bool | None:
    """The schema that a reference inside the document means, None if it has none."""
    if not ref.startswith("#"):
        return None
    pointer = unquote(ref[1:])
    if pointer and not pointer.startswith("/"):
        return _anchored(root, pointer)
    found: Any = root
    for escaped in pointer.split("/")[1:]:
        step = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and step in found:
            found = found[step]
        elif isinstance(found, list) and re.fullmatch("0|[1-9][0-9]*", step) and int(step) < len(found):
            found = found[int(step)]
        else:
            return None
    return found if isinstance(found, dict | bool) else None


def _anchored(root: Schema, name: str) -> Schema | None:
    found: list[Schema] = []

    def note(one: Schema, _: Path) -> Schema:
        if one.get("$anchor") == name:
            found.append(one)
        return one

    rewritten(root, note)
    return found[0] if found else None
