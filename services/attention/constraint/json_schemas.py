"""JSON schemas on their way to a grammar: what says nothing is left out, what can be said otherwise is.

What is left is compiled strictly, so that a keyword that the grammar does not know is refused by its name; or without
the keywords that stand in the way, where a schema may be followed loosely.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

Schema = dict[str, Any]

UNKNOWN_WEIGHT = 10**9
LEAST = ("minLength", "minItems", "minProperties", "minContains")

# Where schemas lie inside a schema.
NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains", "propertyNames")

# Other formats are annotations, as the standard has it.
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
# The values with which a keyword demands nothing.
EMPTY: Mapping[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "propertyNames": (True, {}, {"type": "string"}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "minContains": (0,),
}
# A grammar may fail over the value of one of these.
FRAGILE = ("pattern", "format", "patternProperties", "multipleOf")


def plain(schema: Mapping[str, Any]) -> Schema:
    """The same demands in fewer keywords."""
    return _rewritten(schema, _plain)


def relaxed(schema: Mapping[str, Any]) -> Schema:
    """Fewer demands: without keywords that often cannot be compiled."""
    return _rewritten(schema, lambda one: {key: value for key, value in one.items() if key not in FRAGILE})


def without_counts(schema: Mapping[str, Any]) -> Schema:
    """Without the counts of properties that cannot be enforced."""
    return _rewritten(schema, lambda one: {k: v for k, v in one.items() if k != "minProperties" or not _is_free(one)})


def counts_free_names(schema: Mapping[str, Any]) -> bool:
    """Whether somewhere two or more properties are demanded that may have any name: a name could come twice."""
    return without_counts(schema) != _rewritten(schema, dict)


def schema_weight(schema: object) -> int:
    """More bytes than the shortest value of the schema, or of any schema inside it, can need."""
    match schema:
        case dict():
            least = sum(value for key, value in schema.items() if key in LEAST and isinstance(value, int))
            refs = 10 if "$ref" in schema else 1
            inner = sum(len(str(key)) + 8 + schema_weight(value) for key, value in schema.items())
            return min(UNKNOWN_WEIGHT, inner * max(1, least) * refs)
        case list():
            return min(UNKNOWN_WEIGHT, sum(8 + schema_weight(value) for value in schema))
    return len(json.dumps(schema))


def _rewritten(schema: Mapping[str, Any], change: Callable[[Schema], Schema]) -> Schema:
    """Every schema in it changed, the inner ones first. Values that are data, as in `enum`, are not touched."""

    def inner(value: object) -> object:
        return _rewritten(value, change) if isinstance(value, dict) else value

    new = dict(schema)
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            new[key] = {name: inner(one) for name, one in value.items()}
        elif key in LISTED and isinstance(value, list):
            new[key] = [inner(one) for one in value]
        elif key in SINGLE:
            new[key] = inner(value)
    return change(new)


def _plain(schema: Schema) -> Schema:
    kept = {key: value for key, value in schema.items() if not _says_nothing(key, value, schema)}
    names = kept.get("propertyNames")
    if isinstance(names, dict) and isinstance(names.get("enum"), list) and set(names) <= {"enum", "type"}:
        return _with_names(kept, names["enum"])
    return kept


def _says_nothing(key: str, value: object, schema: Schema) -> bool:
    if key == "format":
        return not isinstance(value, str) or value not in FORMATS
    if key == "uniqueItems" and schema.get("maxItems") in (0, 1):
        return True
    # 0 is no False here, and 1 no True.
    return any(value == empty and type(value) is type(empty) for empty in EMPTY.get(key, ()))


def _with_names(schema: Schema, names: list[object]) -> Schema:
    """The names that properties may have, as properties."""
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    others, given = rest.get("additionalProperties", {}), rest.get("properties", {})
    if "patternProperties" in rest or not isinstance(given, dict):
        return schema
    properties = {name: given.get(name, others) for name in names if isinstance(name, str)}
    return {**rest, "properties": properties, "additionalProperties": False}


def _is_free(schema: Schema) -> bool:
    least, named = schema.get("minProperties"), schema.get("required")
    demanded = least if isinstance(least, int) else 0
    given = len(named) if isinstance(named, list) else 0
    free = schema.get("additionalProperties") is not False or "patternProperties" in schema
    return free and demanded >= 2 and demanded > given
