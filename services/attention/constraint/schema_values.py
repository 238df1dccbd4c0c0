"""The values that keywords of a JSON schema may have."""

from collections.abc import Callable, Mapping
from typing import Any

from services.attention.constraint.json_schemas import NAMED, SINGLE, UNENFORCED

COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
LOWER, UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")


def is_anything(_: object) -> bool:
    return True


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


def _are_schemas(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict | bool) for one in value)


def _are_named_schemas(value: object) -> bool:
    return isinstance(value, dict) and all(one is None or isinstance(one, dict | bool) for one in value.values())


# What the value of a keyword must be.
VALUES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(COUNTS, (lambda value: _is_whole(value) and value >= 0, "expected a whole number")),
    **dict.fromkeys((*LOWER, *UPPER), (is_number, "expected a number")),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), (_are_schemas, "expected a list of schemas")),
    **dict.fromkeys(NAMED, (_are_named_schemas, "expected an object of schemas")),
    **dict.fromkeys(
        [key for key in SINGLE if key not in UNENFORCED],
        (lambda value: isinstance(value, dict | bool), "expected a schema"),
    ),
    "multipleOf": (lambda value: is_number(value) and value > 0, "expected a number above 0"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "no value is allowed"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "expected a list of names",
    ),
    "pattern": (lambda value: isinstance(value, str), "expected a text"),
}
