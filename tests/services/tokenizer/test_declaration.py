"""Tool declarations: the golden cases, and schemas that are no schemas."""

import json

import pytest

from services.runtime.errors import InvalidRequest
from services.tokenizer.declaration import declare
from services.tokenizer.tools import MAX_DEPTH, parse_tools
from tests.golden import read_golden


def declaration_of(tools) -> str:
    return declare(parse_tools(json.dumps(tools)))


def as_json(tools) -> str:
    return json.dumps(tools, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def function(parameters, **more):
    return [{"type": "function", "function": {"name": "f", "parameters": parameters, **more}}]


def test_golden_declarations():
    check_golden(read_golden("tool-declarations.json")["cases"], 31)


def test_golden_declarations_of_moonshots_schemas(shared_data):
    cases = json.loads((shared_data / "tool-declaration-golden.json").read_text())["cases"]
    check_golden([case for case in cases if case["id"].startswith("walle/")], 189)


def check_golden(cases, num_cases):
    assert len(cases) == num_cases
    for case in cases:
        expected = case["ts"] or case.get("fallback_json") or as_json(case["tools"])
        assert declaration_of(case["tools"]) == expected, case["id"]


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param([1], id="list"),
        pytest.param("object", id="string"),
        pytest.param({"properties": [1]}, id="properties-list"),
        pytest.param({"properties": None}, id="properties-null"),
        pytest.param({"properties": {"a": 3}}, id="member-number"),
        pytest.param({"properties": {"a": {"type": None}}}, id="type-null"),
        pytest.param({"properties": {"a": {"type": [["string"]]}}}, id="type-list-of-lists"),
        pytest.param({"properties": {"a": {"anyOf": {"type": "string"}}}}, id="any-of-object"),
        pytest.param({"properties": {"a": {"$ref": 7}}}, id="ref-number"),
        pytest.param({"properties": {"a": {"enum": "ab"}}}, id="enum-string"),
        pytest.param({"properties": {"a": {"type": "string", "description": ["x"]}}}, id="description-list"),
        pytest.param({"required": None, "properties": {}}, id="required-null"),
        pytest.param({"additionalProperties": "yes"}, id="additional-string"),
        pytest.param({"$defs": {"A": True}}, id="definition-boolean"),
        pytest.param({"$defs": 1}, id="definitions-number"),
    ],
)
def test_what_has_no_type_is_declared_as_json(parameters):
    tools = function(parameters)
    assert declaration_of(tools) == as_json(tools)


@pytest.mark.parametrize("broken", [7, [1], "text"])
def test_a_function_that_is_no_object_is_declared_as_json(broken):
    tools = [{"type": "function", "function": broken}]
    assert declaration_of(tools) == as_json(tools)


def test_a_type_may_be_called_like_a_keyword():
    assert "a?: enum" in declaration_of(function({"properties": {"a": {"type": "enum"}}}))


def test_items_with_constraints_stand_on_their_own_lines():
    tools = function({"properties": {"a": {"type": "array", "items": {"type": "string", "maxLength": 3}}}})
    assert "a?: Array<\n    // maxLength: 3\n    string\n  >" in declaration_of(tools)


@pytest.mark.parametrize("nothing", ["", "null", "[]"])
def test_no_tools_declare_nothing(nothing):
    assert declare(parse_tools(nothing)) == ""


@pytest.mark.parametrize(
    "tools_json, field",
    [
        pytest.param("{", "tools", id="no-json"),
        pytest.param("{}", "tools", id="object"),
        pytest.param("7", "tools", id="number"),
        pytest.param('[{"a": NaN}]', "tools", id="nan"),
        pytest.param('["x"]', "tools[0]", id="string-item"),
        pytest.param("[{}, null]", "tools[1]", id="null-item"),
        pytest.param('[{"a": "\\ud800"}]', "tools", id="half-a-surrogate-pair"),
        pytest.param('[{"\\udfff": 1}]', "tools", id="half-a-surrogate-pair-as-key"),
        pytest.param('[{"a": ' + "9" * 5000 + "}]", "tools", id="very-long-integer"),
        pytest.param('[{"a":' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}]", "tools", id="too-deep"),
        pytest.param("[" * 100_000 + "]" * 100_000, "tools", id="far-too-deep"),
    ],
)
def test_bad_tools_are_refused(tools_json, field):
    with pytest.raises(InvalidRequest) as caught:
        parse_tools(tools_json)
    assert caught.value.field == field


def test_the_deepest_schema_still_renders():
    schema = {"type": "string"}
    for _ in range(MAX_DEPTH // 2 - 4):
        schema = {"type": "object", "properties": {"a": schema}}
    assert declaration_of(function(schema)).count("a?: {") == MAX_DEPTH // 2 - 5
