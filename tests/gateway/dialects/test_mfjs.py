"""Schemas under the policy `fixed`: what hosted Kimi refuses is refused, at its place."""

import pytest

from gateway.dialects.chat.mfjs import refuse_unless_mfjs
from gateway.dialects.chat.request import parse_chat
from services.runtime.errors import InvalidRequest

STRING = {"type": "string"}


def properties(**schemas):
    return {"type": "object", "properties": schemas}


REFUSED = [
    (properties(a={"allOf": [STRING]}), "p.properties.a", "allOf"),
    (properties(a={"type": "array", "items": {"const": 1}}), "p.properties.a.items", "const"),
    (properties(a={"type": "string", "pattern": "x"}), "p.properties.a", "pattern"),
    ({"type": "object", "additionalProperties": {"format": "date"}}, "p.additionalProperties", "format"),
    ({"$defs": {"d": {"type": "array", "uniqueItems": True}}}, "p.$defs.d", "uniqueItems"),
    ({"anyOf": [STRING, {"type": "integer", "multipleOf": 2}]}, "p.anyOf.1", "multipleOf"),
    ({"anyOf": [STRING, {"minimum": 2}]}, "p", "anyOf"),
    (properties(a={"$ref": "#/$defs/d", "description": "x"}), "p.properties.a", "$ref"),
    (properties(a={"$ref": "#/properties/b"}), "p.properties.a", "$ref"),
    (properties(a={"$ref": "other.json"}), "p.properties.a", "$ref"),
    (properties(a={"type": "array", "items": [STRING]}), "p.properties.a", "items"),
    (properties(a={"description": "x" * 16_000}), "p", "bytes"),
]
ALLOWED = [
    {},
    properties(format=STRING, pattern={"type": "integer", "minimum": 1}),
    {"$defs": {"d": STRING}, **properties(a={"$ref": "#/$defs/d"}, b={"$ref": "#"})},
    {"anyOf": [STRING, {"$ref": "#"}, {"type": "null"}], "description": "x", "default": {"const": 1}},
    properties(a={"enum": ["x", 1]}, b={"type": "array", "items": STRING, "minItems": 1}),
    {"properties": 3, "anyOf": 5, "items": True},
]


@pytest.mark.parametrize(("schema", "field", "word"), REFUSED)
def test_refused(schema, field, word):
    with pytest.raises(InvalidRequest) as caught:
        refuse_unless_mfjs(schema, "p")
    assert caught.value.field == field
    assert word in str(caught.value)


@pytest.mark.parametrize("schema", ALLOWED)
def test_allowed(schema):
    refuse_unless_mfjs(schema, "p")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": REFUSED[0][0]}}]},
            "tools.0.function.parameters.properties.a",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": REFUSED[0][0]}}},
            "response_format.json_schema.schema.properties.a",
        ),
        ({"tools": [{"type": "builtin_function", "function": {"name": "$web_search"}}]}, "tools"),
    ],
)
def test_only_under_the_policy_fixed(fields, field):
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    for policy in ("open", "kvv"):
        parse_chat(body, 8, policy)
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body, 8, "fixed")
    assert caught.value.field == field
