"""Answers drawn at random under a constraint are valid, whatever the schema, and complete within any budget."""

import json
import re

import jsonschema
import numpy as np
import pytest

from protos import attention_pb2 as pb
from services.checkpoint.markers import Marker
from services.runtime.errors import InvalidRequest
from tests.services.attention.constraint.constraining import callable_tools, objects, tool

STRING, INTEGER, NUMBER, BOOLEAN, NULL = ({"type": t} for t in ("string", "integer", "number", "boolean", "null"))
LEAF = objects(["kind", "value"], kind={"const": "leaf"}, value=INTEGER)
NODE = objects(
    ["kind", "left", "right"], kind={"const": "n"}, left={"$ref": "#/$defs/tree"}, right={"$ref": "#/$defs/tree"}
)
SCHEMAS = {
    "any-object": {"type": "object"},
    "nothing-allowed": objects(),
    "string": STRING,
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": BOOLEAN,
    "null": NULL,
    "anything": {},
    "several-types": {"type": ["string", "null", "integer"]},
    "const": {"const": {"a": [1, 2, {"b": None}]}},
    "enum-of-strings": {"enum": ["red", "green", "greenish", ""]},
    "enum-of-kinds": {"enum": [1, "1", None, True, [1], {"a": 1}]},
    "enum-unicode": {"enum": ["日本", "żółć", "🙂🙂", 'quote " and \\ backslash', "tab\t"]},
    "range": {"type": "integer", "minimum": -3, "maximum": 17},
    "exclusive-range": {"type": "integer", "exclusiveMinimum": 99, "exclusiveMaximum": 1001},
    "float-range": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0},
    "length": {"type": "string", "minLength": 3, "maxLength": 7},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "pattern-with-search": {"type": "string", "pattern": "[0-9]"},
    "uuid": {"type": "string", "format": "uuid"},
    "date": {"type": "string", "format": "date"},
    "array": {"type": "array", "items": STRING},
    "array-bounds": {"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [STRING, INTEGER, BOOLEAN], "items": False, "minItems": 3},
    "nested-arrays": {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": NUMBER}}},
    "array-of-objects": {"type": "array", "minItems": 1, "items": objects(["id"], id=INTEGER, tag=STRING)},
    "required-and-optional": objects(["b"], a=STRING, b=NUMBER, c={"type": "array", "items": STRING}),
    "many-enums": objects([f"e{i}" for i in range(12)], **{f"e{i}": {"enum": ["aa", "bb", i]} for i in range(12)}),
    "additional-integers": {"type": "object", "additionalProperties": INTEGER},
    "additional-beside": {**objects(["a"], a=STRING), "additionalProperties": BOOLEAN},
    "least-properties": {"type": "object", "minProperties": 1, "additionalProperties": BOOLEAN},
    "pattern-properties": {"type": "object", "patternProperties": {"^x_": INTEGER}, "additionalProperties": False},
    "unicode-keys": objects(["名前", "ключ"], **{"名前": STRING, "ключ": INTEGER}),
    "names-of-a-set": {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": INTEGER},
    "empty-demands": {
        "type": "array",
        "uniqueItems": False,
        "minContains": 0,
        "items": {"type": "object", "propertyNames": {"type": "string"}, "unevaluatedProperties": True},
    },
    "one-unique-item": {"type": "array", "items": STRING, "uniqueItems": True, "maxItems": 1},
    "unknown-format": objects(["a"], a={"type": "string", "format": "int32", "$comment": "no such format"}),
    "data-named-like-keywords": {"enum": [{"uniqueItems": False, "format": "int32"}]},
    "one-of": {"oneOf": [objects(["k"], k={"const": "a"}), objects(["k", "v"], k={"const": "b"}, v=INTEGER), NULL]},
    "any-of": {"anyOf": [objects(["a"], a=STRING), objects(["b"], b=INTEGER), NULL]},
    "any-of-scalars": {"anyOf": [{"type": "integer", "minimum": 1000}, {"enum": ["none"]}]},
    "all-of": {"allOf": [objects(["a"], a=STRING), {"type": "object"}]},
    "list": {
        "$defs": {"l": {"anyOf": [NULL, objects(["next"], v=INTEGER, next={"$ref": "#/$defs/l"})]}},
        "$ref": "#/$defs/l",
    },
    "tree": {"$defs": {"tree": {"anyOf": [NODE, LEAF]}}, "$ref": "#/$defs/tree"},
    "recursive-root": objects(["name"], name=STRING, children={"type": "array", "items": {"$ref": "#"}}),
    "mutual": {
        "$defs": {"a": objects([], b={"$ref": "#/$defs/b"}), "b": objects(["n"], n=INTEGER, a={"$ref": "#/$defs/a"})},
        **objects(["x"], x={"$ref": "#/$defs/a"}),
    },
    "deep": objects(["a"], a=objects(["b"], b=objects(["c"], c=objects(["d"], d={"type": "array", "minItems": 1})))),
}
WEATHER = objects(["city"], city=STRING, unit={"enum": ["c", "f"]}, days={"type": "integer", "minimum": 1})
TOOLS = [tool("get_weather", WEATHER), tool("get", SCHEMAS["recursive-root"]), tool("now"), tool("find.all-2", {})]


@pytest.fixture(params=["small", "real"])
def desk(request):
    return request.getfixturevalue(request.param)


def check(text, schema):
    assert "\n" not in text
    assert "\t" not in text
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.slow
def test_content_is_valid_in_every_budget(desk, schema):
    wanted = pb.Constraint(json_schema=json.dumps(schema), starts_in_reasoning=True)
    least = desk.least(wanted)
    for extra in (0, 1, 2, 3, 5, 9, 30, 200):
        token_ids = desk.draw(wanted, least + extra, seed=extra)
        assert token_ids[-1] in desk.constraints._markers.ends
        _, content, calls, repairs = desk.parse(token_ids, reasoning=True)
        check(content, schema)
        assert not calls
        assert not repairs


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
@pytest.mark.slow
def test_the_same_tokens_after_a_move_at_every_token(small, schema):
    wanted = pb.Constraint(json_schema=json.dumps(schema))
    budget = small.least(wanted) + 25
    assert small.draw(wanted, budget, seed=5, moving=True) == small.draw(wanted, budget, seed=5)


@pytest.mark.parametrize("reasoning", [False, True], ids=["instant", "thinking"])
@pytest.mark.parametrize("extra", [0, 1, 2, 4, 8, 20, 60, 300])
def test_required_calls_are_valid_in_every_budget(desk, extra, reasoning):
    wanted = pb.Constraint(
        tools=callable_tools(TOOLS),
        tool_use=pb.TOOL_USE_REQUIRED,
        first_call_index=4,
        starts_in_reasoning=reasoning,
    )
    least = desk.least(wanted)
    for seed in range(4):
        token_ids = desk.draw(wanted, least + extra, seed=seed)
        assert token_ids[-1] in desk.constraints._markers.ends
        _, content, calls, repairs = desk.parse(token_ids, TOOLS, reasoning)
        assert calls
        assert content == ""
        assert not repairs
        check_calls(calls, first=4)


def check_calls(calls, first=0):
    schemas = {one["function"]["name"]: one["function"].get("parameters", objects()) for one in TOOLS}
    for index, (call_id, name, arguments) in enumerate(calls):
        assert call_id == f"functions.{name}:{first + index}"
        check(arguments, schemas[name])
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.slow
def test_every_tool_is_called_sometimes(small):
    wanted = pb.Constraint(tools=callable_tools(TOOLS), tool_use=pb.TOOL_USE_REQUIRED)
    answers = [small.parse(small.draw(wanted, 120, seed=seed), TOOLS)[2] for seed in range(25)]
    assert {name for calls in answers for _, name, _ in calls} == {one["function"]["name"] for one in TOOLS}
    assert max(len(calls) for calls in answers) > 1


def test_no_more_calls_than_allowed(small):
    wanted = pb.Constraint(tools=callable_tools(TOOLS), tool_use=pb.TOOL_USE_REQUIRED, max_tool_calls=1)
    for seed in range(10):
        assert len(small.parse(small.draw(wanted, 200, seed=seed), TOOLS)[2]) == 1


def test_auto_may_talk_may_call_and_what_it_calls_is_valid(small):
    wanted = pb.Constraint(tools=callable_tools(TOOLS), tool_use=pb.TOOL_USE_AUTO, starts_in_reasoning=True)
    num_calls = []
    for seed in range(40):
        token_ids = small.draw(wanted, 12 + 3 * seed, seed=seed, closing=0.1)
        _, _, calls, repairs = small.parse(token_ids, TOOLS, reasoning=True)
        assert not repairs
        check_calls(calls)
        num_calls.append(len(calls))
    assert 0 in num_calls
    assert max(num_calls) > 0


@pytest.mark.parametrize("use", [pb.TOOL_USE_UNSPECIFIED, pb.TOOL_USE_AUTO], ids=["none", "no-tools"])
def test_without_calls_no_marker_of_a_call_comes(small, use):
    wanted = pb.Constraint(tools=callable_tools(TOOLS) if use == 0 else [], tool_use=use, starts_in_reasoning=True)
    markers = small.constraints._markers
    for seed in range(10):
        assert markers.ids[Marker.SECTION_BEGIN] not in small.draw(wanted, 60, seed=seed)


def test_a_text_has_its_form_or_a_section_takes_its_place(small):
    schema = SCHEMAS["required-and-optional"]
    wanted = pb.Constraint(
        json_schema=json.dumps(schema), tools=callable_tools(TOOLS), tool_use=pb.TOOL_USE_AUTO, starts_in_reasoning=True
    )
    kinds = set()
    for seed in range(30):
        _, content, calls, repairs = small.parse(small.draw(wanted, 80, seed=seed), TOOLS, reasoning=True)
        assert not repairs
        assert bool(content) != bool(calls)
        if content:
            check(content, schema)
        check_calls(calls)
        kinds.add(bool(calls))
    assert kinds == {False, True}


@pytest.mark.parametrize(
    "wanted, matches",
    [
        pytest.param({"regex": "[a-f]{3}-(x|yy)+"}, r"[a-f]{3}-(x|yy)+", id="regex"),
        pytest.param({"regex": "[^@]{2,9}@[a-z]+[.]com"}, r"[^@]{2,9}@[a-z]+[.]com", id="regex-of-much"),
        pytest.param({"choices": pb.Choices(texts=["yes", "no", "maybe"])}, "yes|no|maybe", id="choice"),
        pytest.param({"choices": pb.Choices(texts=['a "b"\n', "ü"])}, 'a "b"\n|ü', id="choice-escaped"),
        pytest.param({"grammar": 'start: e\ne: "(" e ")" | e "+" e | /[0-9]/'}, r"[0-9()+]+", id="lark"),
    ],
)
def test_other_forms(desk, wanted, matches):
    wanted = pb.Constraint(**wanted)
    least = desk.least(wanted)
    for extra in (0, 1, 2, 5, 40):
        token_ids = desk.draw(wanted, least + extra, seed=extra)
        assert token_ids[-1] in desk.constraints._markers.ends
        assert re.fullmatch(matches, desk.parse(token_ids)[1])


@pytest.mark.parametrize(
    "wanted, field",
    [
        pytest.param({"json_schema": "{"}, "the.field", id="no-json"),
        pytest.param({"json_schema": "[]"}, "the.field", id="no-object"),
        pytest.param({"json_schema": '{"type": "strong"}'}, "the.field", id="no-type"),
        pytest.param({"json_schema": '{"$ref": "#/no"}'}, "the.field", id="no-definition"),
        pytest.param({"json_schema": '{"type": "integer", "minimum": 2, "maximum": 1}'}, "the.field", id="impossible"),
        pytest.param({"json_schema": '{"minProperties": 2, "type": "object"}'}, "the.field", id="free-names"),
        pytest.param({"json_schema": '{"$ref": "#"}'}, "the.field", id="endless"),
        pytest.param({"json_schema": '{"items": ' * 200 + "{}" + "}" * 200}, "the.field", id="deep"),
        pytest.param({"regex": "(a"}, "the.field", id="bad-regex"),
        pytest.param({"regex": "a" * 300_000}, "the.field", id="huge-regex"),
        pytest.param({"grammar": "begin: 1"}, "the.field", id="bad-grammar"),
        pytest.param({"choices": pb.Choices()}, "the.field", id="no-choice"),
        pytest.param({"tool_use": pb.TOOL_USE_REQUIRED}, "tool_choice", id="no-tools"),
    ],
)
def test_what_cannot_be_enforced_is_refused(small, wanted, field):
    with pytest.raises(InvalidRequest) as caught:
        small.constraint(pb.Constraint(**wanted, content_field="the.field"), [0] * 3, 100)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"a": {"type": "strong"}}},
        {"type": "object", "properties": {"a": {"not": {"type": "string"}}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "if": {}, "then": {}},
        {"type": "string"},
        {"$ref": "http://elsewhere.example/schema"},
    ],
    ids=["bad-type", "not", "if", "no-object", "remote"],
)
def test_no_tool_is_refused(small, parameters):
    wanted = pb.Constraint(tools=callable_tools([tool("f", parameters)]), tool_use=pb.TOOL_USE_REQUIRED)
    _, _, calls, repairs = small.parse(small.draw(wanted, 60), [tool("f", parameters)])
    assert calls
    assert not repairs
    assert isinstance(json.loads(calls[0][2]), dict | str)


def test_tokens_that_break_the_form_are_refused(small):
    wanted = pb.Constraint(json_object=True)
    with pytest.raises(InvalidRequest) as caught:
        small.constraint(wanted, [0, 0, 0, small.table.ordinary.index(b"]")], 100)
    assert caught.value.field == "prompt.token_ids"


def test_numbers_end(small):
    wanted = pb.Constraint(json_schema=json.dumps(SCHEMAS["number"]))
    digits = [small.table.ordinary.index(b"%d" % digit) for digit in range(10)]
    token_ids = [0] * 3
    constraint = small.constraint(wanted, token_ids, 1000)
    stops = small.constraints._markers.ends
    while token_ids[-1] not in stops:
        allowed = np.flatnonzero(constraint.rule().mask)
        token_ids.append(next((d for d in digits[1:] if d in allowed), int(allowed[0])))
    assert len(token_ids) < 30
