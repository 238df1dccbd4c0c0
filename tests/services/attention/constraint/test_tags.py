"""Free text with structural tags: what a tag holds is valid, and a tag that has begun is always completed."""

import json
import re

import jsonschema
import numpy as np
import pytest

from protos import attention_pb2 as pb
from services.attention.constraint.endings import propose_ending
from services.attention.constraint.recipes import (
    Ask,
    ByteMatcher,
    byte_tokenizer,
    compiled,
    guide_of,
    make_recipe,
)
from services.runtime.errors import InvalidRequest
from tests.services.attention.constraint.constraining import objects

MAIL = {"type": "string", "pattern": r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$"}
GET = objects(["mail", "tags"], mail=MAIL, tags={"type": "array", "minItems": 5, "items": {"enum": ["red", "green"]}})
PUT = {"type": "integer", "minimum": 100}
ASKED = {
    "tags": [["<f=get>", GET, "</f>"], ["<f=put>", PUT, "</f>"], ["[note]", {"type": "object"}, ""]],
    "triggers": ["<f=", "["],
}
TEXT = 'a <f <f=get>{"mail":"x@y.zz","tags": ["red","green","red","red","red"]}</f> b[note]{"k":1} c<f=put>123</f>'


def parts_of(text):
    return re.findall(r"<f=(get|put)>(.*?)</f>", text)


def test_every_beginning_of_a_text_is_completed_by_the_guide():
    recipe = make_recipe(Ask("structural_tag", json.dumps(ASKED)))
    for size in range(len(TEXT) + 1):
        matcher = ByteMatcher(compiled(byte_tokenizer(), recipe.grammar))
        assert matcher.consume(TEXT[:size].encode())
        guide = guide_of("structural_tag", recipe.source).after(TEXT[:size].encode())
        ending = propose_ending(matcher, guide, 100)
        assert ending is not None, TEXT[:size]
        for kind, inside in parts_of(TEXT[:size] + ending.decode()):
            jsonschema.validate(json.loads(inside), GET if kind == "get" else PUT)


@pytest.mark.parametrize("kind", ["get", "put"])
def test_a_tag_in_an_answer_is_whole_and_valid(small, kind):
    wanted = pb.Constraint(structural_tag=json.dumps(ASKED))
    for seed in range(6):
        token_ids, random = [0] * 3, np.random.default_rng(seed)
        constraint = small.constraint(wanted, token_ids, 90)
        begun = constraint._plan.grammars.tokenize(f"ab <f={kind}>".encode())
        while len(token_ids) < 93:
            rule = constraint.rule()
            # Among random tokens a trigger is rare, so the answer begins with one.
            drawn = begun.pop(0) if begun else int(random.choice(rule.mask.nonzero()[0]))
            assert rule.mask[drawn]
            token_ids.append(rule.settle(drawn) if rule.settle else drawn)
        text = b"".join(small.table.ordinary[i] for i in token_ids[3:] if i < len(small.table.ordinary))
        found = parts_of(text.decode(errors="replace"))
        assert found[0][0] == kind
        for name, inside in found:
            jsonschema.validate(json.loads(inside), GET if name == "get" else PUT)


@pytest.mark.parametrize(
    "asked, why",
    [
        ({"tags": [["<a>", {}, ""]], "triggers": ["<b"]}, 'tags.0: "<a>" begins with none'),
        ({"tags": [["<a>", {}, ""]], "triggers": ["<a", "<b"]}, 'triggers.1: "<b" begins none'),
        ({"tags": [["<a>", {}, ""]], "triggers": []}, "expected tags"),
        ({"tags": [["<a>", "x", ""]], "triggers": ["<"]}, "expected tags"),
        ({"tags": [["<a>", {}]], "triggers": ["<"]}, "expected tags"),
        ([], "expected tags"),
        ({"tags": [["<a>", {"type": "any"}, ""]], "triggers": ["<"]}, "tags.0: type: "),
    ],
)
def test_what_is_wrong_is_named(asked, why):
    with pytest.raises(InvalidRequest, match=re.escape(why)):
        make_recipe(Ask("structural_tag", json.dumps(asked)))


def test_keywords_are_left_out_one_by_one_where_that_is_wanted():
    asked = {"tags": [["<a>", {"type": "any", "minLength": 3}, "</a>"]], "triggers": ["<a"]}
    recipe = make_recipe(Ask("structural_tag", json.dumps(asked), loose=True))
    assert recipe.left_out == ('tags.0: type: "any" is no type',)
    assert json.loads(recipe.source)["tags"][0][1] == {"minLength": 3}
