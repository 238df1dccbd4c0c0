"""What of a schema cannot be enforced is refused by its name, or left out where the schema may be followed loosely."""

import json

import jsonschema
import pytest

from protos import attention_pb2 as pb
from services.attention.constraint.json_schemas import counts_free_names, plain
from services.runtime.errors import InvalidRequest
from tests.services.attention.constraint.constraining import callable_tools, objects, tool

STRING, INTEGER = {"type": "string"}, {"type": "integer"}
UNENFORCEABLE = {
    "not": {"not": {"type": "string"}},
    "oneOf": {"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"type": "array", "contains": INTEGER},
    "if": {"if": {"type": "string"}, "then": {"minLength": 3}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^x"}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "minProperties": {"type": "object", "minProperties": 2},
}


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("keyword", UNENFORCEABLE)
def test_a_keyword_that_cannot_be_enforced_is_named_or_left_out(small, keyword, inside):
    schema = objects(["a"], a=UNENFORCEABLE[keyword]) if inside else UNENFORCEABLE[keyword]
    with pytest.raises(InvalidRequest, match=f"the.field.*{keyword}"):
        small.constraint(pb.Constraint(json_schema=json.dumps(schema), content_field="the.field"), [0] * 3, 100)
    wanted = pb.Constraint(json_schema=json.dumps(schema), loose=True)
    content = small.parse(small.draw(wanted, small.least(wanted) + 20))[1]
    assert not inside or list(json.loads(content)) == ["a"]


def test_of_a_tool_all_that_can_be_enforced_is(small):
    parameters = objects(["a", "b"], a=INTEGER, b={"type": "string", "pattern": "^(?=x)y", "not": {"const": ""}})
    declared = [tool("f", {**parameters, "minProperties": 2})]
    wanted = pb.Constraint(tools=callable_tools(declared), tool_use=pb.TOOL_USE_REQUIRED)
    for seed in range(5):
        arguments = json.loads(small.parse(small.draw(wanted, 60, seed=seed), declared)[2][0][2])
        jsonschema.validate(arguments, objects(["a", "b"], a=INTEGER, b=STRING))


@pytest.mark.parametrize(
    "schema, fewer",
    [
        pytest.param({"uniqueItems": False, "items": {"uniqueItems": False}}, {"items": {}}, id="inside"),
        pytest.param({"minContains": 0, "uniqueItems": 0}, {"uniqueItems": 0}, id="kinds"),
        pytest.param({"format": "uuid", "anyOf": [{"format": "x"}]}, {"format": "uuid", "anyOf": [{}]}, id="format"),
        pytest.param({"properties": {"format": STRING}}, {"properties": {"format": STRING}}, id="a-name"),
        pytest.param({"const": {"format": "x"}, "default": {"format": "x"}}, None, id="data"),
        pytest.param({"format": ["x"], "properties": 3}, {"properties": 3}, id="nonsense"),
        pytest.param(
            {"propertyNames": {"enum": ["a", "b"]}, "properties": {"a": STRING}, "additionalProperties": INTEGER},
            {"properties": {"a": STRING, "b": INTEGER}, "additionalProperties": False},
            id="names",
        ),
    ],
)
def test_what_demands_nothing_is_left_out(schema, fewer):
    assert plain(schema) == (schema if fewer is None else fewer)


@pytest.mark.parametrize(
    "schema, found",
    [
        ({"minProperties": 1}, False),
        ({"minProperties": 2}, True),
        ({"minProperties": 2, "required": ["a", "b"]}, False),
        ({"minProperties": 2, "additionalProperties": False}, False),
        ({"items": {"anyOf": [{"minProperties": 3}]}}, True),
        ({"enum": [{"minProperties": 3}]}, False),
    ],
)
def test_names_that_could_come_twice(schema, found):
    assert counts_free_names(schema) == found
