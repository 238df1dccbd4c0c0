"""Schemas as people send them, some hundreds: each compiles and holds, and loses what its test says."""

import json
import random
from pathlib import Path

import jsonschema
import pytest

from services.attention.constraint.recipes import Ask, make_recipe
from services.runtime.errors import InvalidRequest
from tests.services.attention.constraint.test_random_schemas import check_a_walk
from tests.services.attention.constraint.tool_schemas import tool_schemas

ROOT = Path(__file__).resolve().parents[4]
FORMS = [json.loads(line) for line in (ROOT / "tests" / "data" / "schemas.jsonl").read_text().splitlines()]
TOOLS = tool_schemas()
# Of Moonshot's own validator, not ours to publish (tests/data/README.md).
VERIFIER = ROOT.parent / "shared" / "data" / "tool-declaration-golden.json"


def check(schema, draw, num_walks=2):
    """What was left out of a schema that compiles and holds."""
    recipe = make_recipe(Ask("json", json.dumps(schema), loose=True))
    validators = [jsonschema.Draft202012Validator(json.loads(recipe.source))]
    if not recipe.left_out:
        validators.append(jsonschema.Draft202012Validator(schema))
    for validator in validators:
        validator.validate(json.loads(recipe.ending.encode("latin-1")))
        for _ in range(num_walks):
            check_a_walk(recipe, draw, validator)
    return recipe.left_out


def test_there_are_as_many_as_the_verifier_has():
    assert len(FORMS) + len(TOOLS) >= 204
    assert len({json.dumps(schema) for schema in (*FORMS, *TOOLS.values())}) >= 204


@pytest.mark.slow
def test_parameters_of_tools_hold():
    draw = random.Random(1)
    assert {name: check(schema, draw) for name, schema in TOOLS.items()} == dict.fromkeys(TOOLS, ())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_forms_of_answers_hold(part):
    draw = random.Random(part)
    found = [(schema, left_out) for schema in FORMS[part::4] if (left_out := check(schema, draw))]
    assert found == []


@pytest.mark.slow
@pytest.mark.skipif(not VERIFIER.exists(), reason="Moonshot's schemas are not here")
def test_the_verifiers_schemas_hold():
    cases = json.loads(VERIFIER.read_text())["cases"]
    tools = [(case["id"], tool["function"]) for case in cases for tool in case["tools"] if "function" in tool]
    schemas = [(name, function["parameters"]) for name, function in tools if function.get("parameters")]
    draw = random.Random(2)
    found, refused = {}, {}
    for name, schema in schemas:
        try:
            if left_out := check(schema, draw, num_walks=1):
                found[name] = left_out
        except InvalidRequest as error:
            refused[name] = error.message
    assert len(schemas) >= 204
    assert not refused
    # References to nowhere, types that there are not, and a number of characters beyond any answer.
    assert found.keys() == {
        *("hand/ref_unknown", "hand/ref_missing", "hand/unknown_scalar", "hand/unknown_union"),
        "walle/TestRangeConstraints/3",
    }
