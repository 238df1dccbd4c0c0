"""What of a schema cannot be enforced is refused by its name, or left out by its name, keyword by keyword."""

import json

import jsonschema
import pytest

from protos import attention_pb2 as pb
from services.attention.constraint.json_schemas import paths_of, replaced, resolve
from services.attention.constraint.recipes import Ask, complaint_about, make_recipe
from services.attention.constraint.schema_fitting import Fitting
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
    "$ref": {"$ref": "#/components/schemas/X"},
    "type": {"type": "STRING"},
    "enum": {"type": "string", "enum": []},
    "maximum": {"type": "number", "maximum": 1e20},
    "minimum": {"type": "integer", "minimum": 10**18},
    "pattern": {"type": "string", "pattern": "(?=a)b"},
    "patternProperties.a(": {"type": "object", "patternProperties": {"a(": STRING}},
    "multipleOf": {"type": "integer", "multipleOf": 999_983},
    "allOf": {"allOf": [{"type": "string", "pattern": f"{letter}.{{20}}"} for letter in "abcdef"]},
    "minLength": {"type": "string", "minLength": 5, "maxLength": 2},
}


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("keyword", UNENFORCEABLE)
def test_a_keyword_that_cannot_be_enforced_is_named_or_left_out(small, keyword, inside):
    schema = objects(["a", "b"], a=UNENFORCEABLE[keyword], b=INTEGER) if inside else UNENFORCEABLE[keyword]
    path = f"properties.a.{keyword}" if inside else keyword
    with pytest.raises(InvalidRequest) as caught:
        small.constraint(pb.Constraint(json_schema=json.dumps(schema), content_field="the.field"), [0] * 3, 100)
    assert caught.value.message.startswith(f"the.field: {path}: ")
    wanted = pb.Constraint(json_schema=json.dumps(schema), loose=True, content_field="the.field")
    assert any(one.startswith(f"the.field: {path}: ") for one in small.plan(wanted).left_out)
    content = small.parse(small.draw(wanted, small.least(wanted) + 20))[1]
    if inside:
        # The rest holds.
        jsonschema.validate(json.loads(content), objects(["a", "b"], a={}, b=INTEGER))


def test_the_library_s_own_complaint_comes_with_the_name_of_the_property():
    schema = objects(["mail"], mail={"type": "string", "pattern": r"^(?!\.)[a-z.]+$"})
    with pytest.raises(InvalidRequest, match=r"^properties.mail.pattern: look-around.* not supported$"):
        make_recipe(Ask("json", json.dumps({"type": "object", **schema})))
    with pytest.raises(InvalidRequest, match=r"^properties.mail.pattern: backreferences are not supported$"):
        make_recipe(Ask("json", json.dumps(objects(mail={"type": "string", "pattern": r"(a)\1"}))))


def test_of_a_tool_all_that_can_be_enforced_is(small):
    parameters = objects(["a", "b"], a=INTEGER, b={"type": "string", "pattern": "^(?=x)y", "not": {"const": ""}})
    declared = [tool("f", {**parameters, "minProperties": 2})]
    wanted = pb.Constraint(tools=callable_tools(declared), tool_use=pb.TOOL_USE_REQUIRED)
    left_out = [one.split(": ")[:2] for one in small.plan(wanted).left_out]
    assert sorted(left_out) == [["tools.f", "properties.b.not"], ["tools.f", "properties.b.pattern"]]
    for seed in range(5):
        arguments = json.loads(small.parse(small.draw(wanted, 60, seed=seed), declared)[2][0][2])
        jsonschema.validate(arguments, objects(["a", "b"], a=INTEGER, b=STRING))


def fitted(schema):
    fitting = Fitting(schema, complaint_about)
    return fitting.schema, fitting.left_out


@pytest.mark.parametrize(
    "schema, fewer",
    [
        pytest.param({"uniqueItems": False, "items": {"uniqueItems": False}}, {"items": {}}, id="inside"),
        pytest.param({"minContains": 0}, {}, id="zero"),
        pytest.param({"format": "uuid", "anyOf": [{"format": "x"}]}, {"format": "uuid", "anyOf": [{}]}, id="format"),
        pytest.param({"properties": {"format": STRING}}, {"properties": {"format": STRING}}, id="a-name"),
        pytest.param({"const": {"format": "x"}, "default": {"format": "x"}}, None, id="data"),
        pytest.param({"format": ["x"], "properties": {}}, {"properties": {}}, id="nonsense"),
        pytest.param(
            {"propertyNames": {"enum": ["a", "b"]}, "properties": {"a": STRING}, "additionalProperties": INTEGER},
            {"properties": {"a": STRING, "b": INTEGER}, "additionalProperties": False},
            id="names",
        ),
        pytest.param(
            {"required": None, "properties": {"a": {"enum": None, "minLength": None}, "b": None}, "anyOf": None},
            {"properties": {"a": {}, "b": True}},
            id="null-is-absent",
        ),
        pytest.param({"const": None, "enum": [None]}, None, id="null-as-data"),
        pytest.param(
            {"type": "number", "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
            {"type": "number"},
            id="the-range-of-doubles",
        ),
        pytest.param({"type": "integer", "minimum": -(2**63)}, {"type": "integer"}, id="the-range-of-int64"),
        pytest.param({"minLength": 3.0}, {"minLength": 3}, id="a-whole-number"),
        pytest.param({"minimum": 0, "exclusiveMinimum": True}, {"exclusiveMinimum": 0}, id="draft-4"),
        pytest.param(
            {"items": [STRING], "additionalItems": False}, {"prefixItems": [STRING], "items": False}, id="draft-7"
        ),
        pytest.param(
            {
                "$id": "https://a.example/c",
                "$schema": "foo",
                "$ref": "https://a.example/c#/$defs/x",
                "$defs": {"x": {}},
            },
            {"$ref": "#/$defs/x", "$defs": {"x": {}}},
            id="id",
        ),
    ],
)
def test_what_demands_nothing_is_left_out_without_a_word(schema, fewer):
    assert fitted(schema) == (schema if fewer is None else fewer, [])


@pytest.mark.parametrize(
    "schema, is_left_out",
    [
        ({"minProperties": 1}, False),
        ({"minProperties": 2}, True),
        ({"minProperties": 2, "required": ["a", "b"]}, False),
        ({"items": {"anyOf": [{"minProperties": 3}]}}, True),
        ({"enum": [{"minProperties": 3}]}, False),
    ],
)
def test_names_that_could_come_twice(schema, is_left_out):
    assert bool(fitted(schema)[1]) == is_left_out


@pytest.mark.parametrize(
    "schema, path",
    [
        ({"minLength": "3"}, "minLength"),
        ({"maxItems": -1}, "maxItems"),
        ({"minimum": "0"}, "minimum"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"anyOf": {}}, "anyOf"),
        ({"properties": []}, "properties"),
        ({"items": "string"}, "items"),
        ({"required": "a"}, "required"),
        ({"pattern": 3}, "pattern"),
        ({"type": []}, "type"),
        ({"type": ["string", 3]}, "type"),
        ({"$ref": 3}, "$ref"),
        ({"$ref": "other.json#/x"}, "$ref"),
        ({"properties": {"a": {"items": {"type": "any"}}}}, "properties.a.items.type"),
        ({"anyOf": [STRING, {"type": "any"}]}, "anyOf.1.type"),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2, "additionalProperties": False},
            "minProperties",
        ),
        ({"patternProperties": {"a.{9}": STRING, "b.{9}|ab.{8}": STRING}}, "patternProperties"),
        ({"allOf": [STRING, INTEGER]}, "allOf"),
        ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "allOf"),
        ({"multipleOf": 9973, "$ref": "#/$defs/n", "$defs": {"n": {"multipleOf": 9967}}}, "$ref"),
    ],
)
def test_nonsense_costs_its_own_keyword(schema, path):
    kept, left_out = fitted({**schema, "title": "kept"})
    assert [one.split(": ")[0] for one in left_out] == [path]
    assert kept["title"] == "kept"


def test_branches_that_overlap_become_alternatives():
    one_of = [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]
    kept, left_out = fitted({"oneOf": one_of, "anyOf": [INTEGER, STRING]})
    assert kept == {"anyOf": [INTEGER, STRING], "allOf": [{"anyOf": one_of}]}
    assert len(left_out) == 1


def test_references_are_pointers_and_anchors():
    schema = {"$defs": {"a/b": {"$anchor": "here"}, "l": {"prefixItems": [{}, INTEGER]}}}
    assert resolve(schema, "#/$defs/a~1b") == resolve(schema, "#here") == {"$anchor": "here"}
    assert resolve(schema, "#/%24defs/l/prefixItems/1") == INTEGER
    assert resolve(schema, "#") is schema
    for nowhere in ("#there", "#/$defs/c", "#/$defs/l/prefixItems/2", "#/$defs/l/prefixItems/x", "http://a.example/"):
        assert resolve(schema, nowhere) is None


def test_paths_lead_to_all_schemas_inner_ones_first():
    schema = {"properties": {"a": {"items": {}}}, "enum": [{"items": {}}]}
    assert paths_of(schema) == [("properties", "a", "items"), ("properties", "a"), ()]
    assert replaced(schema, ("properties", "a", "items"), STRING)["properties"]["a"] == {"items": STRING}


def test_a_member_that_cannot_be_costs_only_its_own_demand():
    schema = {"properties": {"a": False, "b": {"type": "integer"}, "c": False}, "required": ["a", "b", "c"]}
    recipe = make_recipe(Ask("json", json.dumps({"type": "object", **schema}), loose=True))
    assert recipe.ending == '{"b":0}'
    assert [one.partition(":")[0] for one in recipe.left_out] == ["required.a", "required.c"]
    inner = {"type": "object", "properties": {"x": False, "y": {}}, "required": ["y", "x"]}
    outer = {"type": "object", "properties": {"a": inner, "b": {"type": "integer"}}, "required": ["a", "b"]}
    recipe = make_recipe(Ask("json", json.dumps(outer), loose=True))
    assert recipe.ending == '{"a":{"y":0},"b":0}'
    assert [one.partition(":")[0] for one in recipe.left_out] == ["properties.a.required.x"]
    with pytest.raises(InvalidRequest, match=r"required\.a: .*unsatisfiable"):
        make_recipe(Ask("json", json.dumps({"type": "object", **schema})))
