"""Random schemas: each compiles, loses single keywords at most, and every text under it can be completed."""

import json
import random

import jsonschema
import pytest

from services.attention.constraint.endings import find_ending
from services.attention.constraint.recipes import (
    Ask,
    ByteMatcher,
    byte_tokenizer,
    compiled,
    guide_of,
    make_recipe,
)
from services.runtime.errors import InvalidRequest

NAMES = ("a", "b", "kind", "é", "x y")
PATTERNS = ("^a+$", "foo", "^[A-Z]{2}\\d*$", "x|y", "^\\S+@\\S+$")
FORMATS = ("date", "uuid", "email", "ipv4", "ipv6", "time", "date-time", "uri", "hostname", "duration")
VALUES = (1, "a", "b", None, True, [1], {"a": 1}, 1.5, "é")
TYPICAL = b'{}[]",:0123456789truefalsnx_yabckind@ '


class Schemas:
    """Draws schemas."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def root(self):
        schema = self.schema(4, ["#", "#/$defs/p", "#/$defs/q"])
        definitions = {"p": self.schema(2, ["#/$defs/q", "#"]), "q": self.schema(2, ["#/$defs/p"])}
        return {**schema, "$defs": definitions}

    def schema(self, depth, refs):
        draw = self.random
        if depth <= 0 or draw.random() < 0.35:
            return self.leaf(refs)
        inner = [self.schema(depth - 1, refs) for _ in range(3)]
        names = draw.sample(NAMES, draw.randint(0, 3))
        required = [name for name in names if draw.random() < 0.6]
        named = {"type": "object", "properties": dict(zip(names, inner, strict=False)), "required": required}
        return draw.choice(
            [
                {**named, "additionalProperties": False},
                named,
                {"type": "array", "items": inner[0], "minItems": draw.randint(0, 3), "maxItems": draw.randint(3, 5)},
                {"type": "array", "prefixItems": inner[:2], "items": False, "minItems": draw.randint(0, 2)},
                {draw.choice(["anyOf", "oneOf", "allOf"]): inner[: draw.randint(1, 3)]},
                {"type": "object", "patternProperties": {"^x_": inner[0]}, "additionalProperties": False},
                {"type": "object", "additionalProperties": inner[0], "required": names[:1]},
            ]
        )

    def leaf(self, refs):
        draw = self.random
        return draw.choice(
            [
                {"type": draw.choice(["string", "integer", "number", "boolean", "null"])},
                {"enum": draw.sample(VALUES, draw.randint(1, 4))},
                {"const": draw.choice(VALUES)},
                {"type": "string", "pattern": draw.choice(PATTERNS)},
                {"type": "string", "format": draw.choice(FORMATS)},
                {"type": "string", "minLength": draw.randint(0, 4), "maxLength": draw.randint(4, 9)},
                {"$ref": draw.choice(refs)},
                {"type": draw.sample(["string", "null", "integer", "object", "array"], 2)},
                {"type": "number", "minimum": draw.choice([-5, 0, 0.5]), "maximum": draw.choice([10, 7.5])},
            ]
        )


def check_a_walk(recipe, draw, validator):
    """A text that the grammar allows, begun at random, is completed to a valid one."""
    matcher, text = ByteMatcher(compiled(byte_tokenizer(), recipe.grammar)), b""
    for _ in range(draw.randint(0, 60)):
        allowed = matcher.next_bytes()
        if not allowed:
            break
        byte = bytes([draw.choice([one for one in allowed if one in TYPICAL] or list(allowed))])
        assert matcher.consume(byte)
        text += byte
    ending = find_ending(matcher, guide_of("json", recipe.source).after(text), 5_000)
    assert ending is not None, text
    validator.validate(json.loads(text + ending))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_schemas_compile_and_hold(seed):
    schemas = Schemas(seed)
    num_refused = 0
    for _ in range(20):
        schema = schemas.root()
        try:
            recipe = make_recipe(Ask("json", json.dumps(schema), loose=True))
        except InvalidRequest as error:
            assert "no finite value" in error.message
            num_refused += 1
            continue
        validator = jsonschema.Draft202012Validator(json.loads(recipe.source))
        validator.validate(json.loads(recipe.ending.encode("latin-1")))
        for _ in range(3):
            check_a_walk(recipe, schemas.random, validator)
    assert num_refused <= 3
