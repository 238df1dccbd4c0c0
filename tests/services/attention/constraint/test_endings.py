"""Whatever the grammar's library accepts has an ending that is found at once, at the start and inside of a text."""

import json
import random
import re
import time

import jsonschema
import pytest

from protos import attention_pb2 as pb
from services.attention.constraint.endings import find_ending, search_ending
from services.attention.constraint.grammar import compiled
from services.attention.constraint.guides import JsonGuide, TextGuide
from services.attention.constraint.json_place import Container, JsonPlace
from services.attention.constraint.recipes import (
    Ask,
    ByteMatcher,
    byte_tokenizer,
    guide_of,
    json_grammar,
    make_recipe,
)
from services.runtime.errors import InvalidRequest
from tests.services.attention.constraint.constraining import callable_tools, objects, tool
from tests.services.attention.constraint.test_constraint import SCHEMAS, STRING

# With a shortest text of each.
PATTERNS = {
    r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$": "a@a.aa",
    r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$": "a@a.aa",
    r"^.+@.+\..+$": "a@a.a",
    r"\.(py|js)$": ".py",
    r"^/[\w./-]+\.csv$": "/a.csv",
    r"https?://": "http://",
    r"SELECT": "SELECT",
    r"foo": "foo",
    r"^.+\.py$": "a.py",
    r"^\S+$": "a",
    r"^\d{4}-\d{2}-\d{2}$": "0000-00-00",
    r"^#[0-9a-fA-F]{6}$": "#000000",
    r"^\+?[1-9]\d{1,14}$": "10",
    r"^(\d{1,3}\.){3}\d{1,3}$": "0.0.0.0",
    r"^[A-Z]{2}\d{6}$": "AA000000",
    r"^(foo|bar|bazz)$": "foo",
    r"^(?i)abc$": "abc",
    r"^[a-z]+(-[a-z]+)*$": "a",
    r"^v\d+\.\d+\.\d+$": "v0.0.0",
    r"[^a]": "b",
    r"^$": "",
    r"^[\p{L}\p{N} ]+$": "a",
    r"^\x41\u0042$": "AB",
    r"é+": "é",
    r"[\u4e00-\u9fff]{2}": "一一",
    r"^(?P<year>\d{4})$": "0000",
    r"^[[:alpha:]&&[^a-y]]$": "z",
    r"^.{3,5}$": "aaa",
    r"^a{200}$": "a" * 200,
    r"^\p{Greek}x$": "αx",  # a script that only the library knows
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_everyday_patterns_are_accepted_and_kept(pattern):
    shortest = PATTERNS[pattern]
    recipe = make_recipe(Ask("json", json.dumps(objects(["m"], m={"type": "string", "pattern": pattern}))))
    ending = json.loads(recipe.ending.encode("latin-1"))["m"]
    assert len(ending) == len(shortest)
    if "\\p" not in pattern and "[[:" not in pattern:
        assert re.search(pattern.replace("^(?i)", "(?i)^"), ending)
    assert json.loads(recipe.source)["properties"]["m"]["pattern"] == pattern
    assert not recipe.left_out
    whole = make_recipe(Ask("regex", pattern.replace("^", "").replace("$", "")))
    assert len(whole.ending.encode("latin-1").decode()) <= len(shortest)


@pytest.mark.parametrize(
    "schema, size",
    [
        ({"type": "array", "items": {"type": "integer"}, "minItems": 50}, 101),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 500}, 1001),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 8_000}, 16_001),
        ({"type": "string", "minLength": 1000}, 1002),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 3),
        ({"type": "integer", "minimum": 1000, "multipleOf": 7}, 4),
        (
            {"type": "object", "minProperties": 1, "patternProperties": {"^x_": STRING}, "additionalProperties": False},
            9,
        ),
        ({"type": "object", "properties": {f"p{i}": STRING for i in range(2000)}, "additionalProperties": False}, 2),
    ],
)
def test_long_forms_have_their_shortest_text_at_once(schema, size):
    started = time.thread_time()
    assert len(make_recipe(Ask("json", json.dumps(schema))).ending) == size
    assert time.thread_time() - started < 2.0


SELF = {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]}
PAIRS = {f"d{i}": objects("ab", a={"$ref": f"#/$defs/d{i + 1}"}, b={"$ref": f"#/$defs/d{i + 1}"}) for i in range(40)}
IMPOSSIBLE = {
    "requires-itself": SELF,
    "refers-to-itself": {"$ref": "#"},
    "a-million-items": {"type": "array", "minItems": 10**6},
    "thirty-thousand-items": {"type": "array", "minItems": 30_000},
    "doubling": {"$ref": "#/$defs/d0", "$defs": {**PAIRS, "d40": STRING}},
    "through-alternatives": {"anyOf": [SELF, objects(["x"], x={"$ref": "#"})]},
}


@pytest.mark.parametrize("schema", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_the_impossible_is_refused_at_once(schema):
    started = time.thread_time()
    for loose in (False, True):
        with pytest.raises(InvalidRequest, match="no finite value"):
            make_recipe(Ask("json", json.dumps(schema), loose))
    assert time.thread_time() - started < 0.5


def test_a_branch_without_a_finite_value_is_never_entered(small):
    endless = objects(["next"], next={"$ref": "#/$defs/endless"})
    schema = {
        "$defs": {"endless": endless},
        "anyOf": [{"$ref": "#/$defs/endless"}, objects(["a"], a={"type": "integer"})],
    }
    wanted = pb.Constraint(json_schema=json.dumps(schema))
    for seed in range(10):
        assert list(json.loads(small.parse(small.draw(wanted, 20, seed=seed))[1])) == ["a"]


def test_an_expression_of_a_tool_is_kept(small):
    parameters = objects(["email"], email={"type": "string", "pattern": next(iter(PATTERNS))})
    wanted = pb.Constraint(tools=callable_tools([tool("f", parameters)]), tool_use=pb.TOOL_USE_REQUIRED)
    for seed in range(6):
        calls = small.parse(small.draw(wanted, 70, seed=seed), [tool("f", parameters)])[2]
        assert calls
        for call in calls:
            jsonschema.validate(json.loads(call[2]), parameters)


TEXTS = {
    "tree": '{"kind":"n","left":{"kind":"leaf","value":-12},"right":{"kind":"n","left":{"kind":"leaf","value":7}',
    "array-of-objects": '[{"id": 13, "tag": "a\\nb"}, {"id":0',
    "const": '{"a":[1,2,{"b"',
    "tuple": '["\\u001fü", 12',
    "recursive-root": '{"name":"日本","children":[{"name":"x","children":[',
    "enum-unicode": '"日',
    "pattern-properties": '{"x_é":1,"x_',
    "uuid": '"0123abcd-0123-',
    "any-of-scalars": "12",
    "float-range": "0.",
    "least-properties": '{"',
    "required-and-optional": '{"a":"","b":1,',
    "anything": '{"a":[true,{"b":fal',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.slow
def test_every_beginning_of_a_text_is_completed_by_proposals_or_by_the_search(name):
    schema, text = SCHEMAS[name], TEXTS[name].encode()
    recipe = make_recipe(Ask("json", json.dumps(schema)))
    for size in range(len(text) + 1):
        matcher = ByteMatcher(compiled(byte_tokenizer(), recipe.grammar))
        assert matcher.consume(text[:size])
        guide = guide_of("json", recipe.source).after(text[:size])
        ending = find_ending(matcher, guide, 5_000)
        assert ending is not None
        jsonschema.validate(json.loads(text[:size] + ending), schema)
        # In the middle of an escape the search alone may give up.
        by_search = search_ending(matcher, guide, 300)
        if by_search is not None:
            jsonschema.validate(json.loads(text[:size] + by_search), schema)


def test_random_texts_of_a_pattern_are_completed_shortest():
    pattern = r"(ab|c{3}d)+@[^x]?(\.z{2,4}|é)"
    guide, rng = guide_of("regex", pattern), random.Random(3)
    grammar = make_recipe(Ask("regex", pattern)).grammar
    assert isinstance(guide, TextGuide)
    for _ in range(20):
        matcher, text = ByteMatcher(compiled(byte_tokenizer(), grammar)), b""
        for _ in range(rng.randrange(12)):
            allowed = matcher.next_bytes()
            if not allowed:
                break
            byte = bytes([rng.choice(allowed)])
            assert matcher.consume(byte)
            text += byte
        ending = find_ending(matcher, guide.after(text), 5_000)
        by_search = search_ending(matcher, guide.after(text), 20_000)
        assert re.fullmatch(pattern, (text + ending).decode())
        assert len(ending) <= len(by_search)


def test_places_in_json():
    place = JsonPlace().after(b'{"a": [1, "x\\"y", {"b": tr')
    inner = Container(is_object=True, names=("b",))
    assert place.containers == (Container(is_object=True, names=("a",)), Container(is_object=False, num_items=3), inner)
    assert (place.hand, place.num_digits) == (b"tr", 2)
    assert place.after(b"ue}]}").is_whole
    assert JsonPlace().after(b'["\\').text_in_hand is None
    assert JsonPlace().after('["é'.encode()[:-1]).text_in_hand is None
    assert JsonPlace().after(b'["a\\u0062').text_in_hand == "ab"


def test_a_guide_that_is_lost_leaves_it_to_the_search():
    schema = {"type": "array", "items": {"type": "string", "pattern": r"^\p{Greek}{2}$"}, "minItems": 2}
    matcher = ByteMatcher(compiled(byte_tokenizer(), json_grammar(schema)))
    text = '["αβ","γ'.encode()
    assert matcher.consume(text)
    guide = guide_of("json", json.dumps(schema)).after(text)
    assert isinstance(guide, JsonGuide)
    ending = find_ending(matcher, guide, 20_000)
    assert [len(one) for one in json.loads(text + ending)] == [2, 2]
