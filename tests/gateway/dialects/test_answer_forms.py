"""Every field that gives an answer a form, by whatever server it was invented, becomes a constraint."""

import json

import pytest

from gateway.dialects.chat.request import parse_chat
from gateway.dialects.completions.request import parse_completion
from gateway.request.constraint import constraint_of
from protos.tokenizer_pb2 import CONTENT, REASONING, RenderResponse
from services.runtime.errors import InvalidRequest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"structures": [{"begin": "<a>", "schema": SCHEMA, "end": "</a>"}], "triggers": ["<a"]}
LARK = 'start: "a"'


def chat(**fields):
    request = parse_chat({"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}, 8).request
    return constraint_of(request, RenderResponse(parser_state=REASONING))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
        ({"json_schema": SCHEMA}, "json_schema"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
    ],
)
def test_schemas(fields, field):
    found = chat(**fields)
    assert (json.loads(found.json_schema), found.content_field) == (SCHEMA, field)


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"regex": "a+"}, "regex", "a+"),
        ({"guided_grammar": LARK}, "grammar", LARK),
        ({"grammar": LARK}, "grammar", LARK),
        ({"ebnf": 'root ::= "a"'}, "grammar", 'start: r_root\nr_root: "a"\n'),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'start: r_root\nr_root: "a"\n'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'start: r_root\nr_root: "a"\n'),
        ({"structured_outputs": {"json_object": True}}, "json_object", True),
    ],
)
def test_other_forms(fields, kind, value):
    assert getattr(chat(**fields), kind) == value


def test_choices():
    assert list(chat(guided_choice=["yes", "no"]).choices.texts) == ["yes", "no"]


def test_structural_tags_are_the_same_under_every_name():
    names = [
        {"response_format": {"type": "structural_tag", **TAG}},
        {"structural_tag": json.dumps(TAG)},
        {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
    ]
    grammars = {chat(**fields).grammar for fields in names}
    assert len(grammars) == 1
    assert 'trigger_0[lazy]: TEXT "<a"' in grammars.pop()


def test_a_raw_prompt_may_have_a_form():
    body = {"model": "m", "prompt": "x", "guided_regex": "a+"}
    request = parse_completion(body, max_choices=8, max_prompts=8).request
    found = constraint_of(request, RenderResponse(parser_state=CONTENT))
    assert (found.regex, found.starts_in_reasoning) == ("a+", False)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"guided_json": SCHEMA, "regex": "a"}, "regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structural_tag": "{"}, "structural_tag"),
        ({"structural_tag": "{}"}, "structural_tag"),
        ({"response_format": {"type": "structural_tag", "triggers": ["<"]}}, "response_format.structures"),
        ({"ebnf": "root ::= x"}, "ebnf"),
        ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(fields, field):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.field == field
