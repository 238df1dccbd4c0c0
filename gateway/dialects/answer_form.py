"""The form that a request demands of the visible text, whichever field asks for it."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from gateway.dialects.ebnf import lark_of_ebnf
from gateway.dialects.form_fields import (
    FormFields,
    JsonObjectFormat,
    JsonSchemaFormat,
    Schema,
    StructuralTag,
    StructuralTagFormat,
)
from gateway.dialects.structural_tags import lark_of_tags
from gateway.http.body import check
from gateway.request.chat_model import FormedAnswer, JsonAnswer
from services.runtime.errors import InvalidRequest

Form = JsonAnswer | FormedAnswer


def answer_form(fields: FormFields) -> Form | None:
    """Return the only form that is asked for; InvalidRequest if there are two, or one cannot be read."""
    forms = [*_of_response_format(fields), *_of_structured_outputs(fields), *_of_other_servers(fields)]
    if len(forms) > 1:
        raise InvalidRequest(f"{forms[1].field}: not together with {forms[0].field}", field=forms[1].field)
    return forms[0] if forms else None


def _of_response_format(fields: FormFields) -> Iterator[Form]:
    match fields.response_format:
        case JsonSchemaFormat(json_schema=demanded):
            loose = demanded.strict is False
            yield JsonAnswer(_json(demanded.schema_), "response_format.json_schema.schema", loose=loose)
        case JsonObjectFormat(schema_=dict() as schema):
            yield JsonAnswer(_json(schema), "response_format.schema")
        case JsonObjectFormat():
            yield JsonAnswer("", "response_format")
        case StructuralTagFormat() as tag:
            yield _tagged(tag, "response_format")


def _of_structured_outputs(fields: FormFields) -> Iterator[Form]:
    asked = fields.structured_outputs
    if asked is None:
        return
    texts = {
        "json": asked.json_,
        "regex": asked.regex,
        "grammar": asked.grammar,
        "structural_tag": asked.structural_tag,
    }
    yield from _of_texts({f"structured_outputs.{name}": value for name, value in texts.items()})
    if asked.choice is not None:
        yield FormedAnswer("choice", tuple(asked.choice), "structured_outputs.choice")
    if asked.json_object:
        yield JsonAnswer("", "structured_outputs.json_object")


def _of_other_servers(fields: FormFields) -> Iterator[Form]:
    names = ("guided_json", "guided_regex", "guided_grammar", "json_schema", "regex", "ebnf", "grammar")
    yield from _of_texts({name: getattr(fields, name) for name in (*names, "structural_tag")})
    if fields.guided_choice is not None:
        yield FormedAnswer("choice", tuple(fields.guided_choice), "guided_choice")


def _of_texts(values: Mapping[str, Schema | None]) -> Iterator[Form]:
    """Return the forms of fields that hold one text or schema, by the end of their names."""
    for field, value in values.items():
        if value is None:
            continue
        kind = field.rpartition(".")[2].removeprefix("guided_")
        if kind in ("json", "json_schema"):
            yield JsonAnswer(value if isinstance(value, str) else _json(value), field)
            continue
        assert isinstance(value, str), "only schemas may be objects"
        match kind:
            case "regex":
                yield FormedAnswer("regex", (value,), field)
            case "structural_tag":
                yield _tagged(_parsed_tag(value, field), field)
            case _:
                # Lark's rules are `name: ...`, those of every EBNF here `name ::= ...`.
                lark = lark_of_ebnf(value, field) if kind == "ebnf" or "::=" in value else value
                yield FormedAnswer("grammar", (lark,), field)


def _parsed_tag(text: str, field: str) -> StructuralTag:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{field}: not JSON: {error.msg} at character {error.pos}", field=field) from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field}: must be the JSON text of an object", field=field)
    try:
        return check(StructuralTag, value)
    except InvalidRequest as error:
        raise InvalidRequest(f"{field}: {error.message}", field=field) from error


def _tagged(tag: StructuralTag, field: str) -> FormedAnswer:
    tags = [(one.begin, one.schema_, one.end) for one in tag.structures]
    return FormedAnswer("grammar", (lark_of_tags(tags, tag.triggers, field),), field)


def _json(schema: Mapping[str, Any]) -> str:
    return orjson.dumps(schema).decode()
