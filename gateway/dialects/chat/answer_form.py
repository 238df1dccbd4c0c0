"""The form that a chat request demands of the visible text."""

import orjson

from gateway.dialects.chat.schema import ChatCompletionRequest, JsonObjectFormat, JsonSchemaFormat
from gateway.request.chat_model import FormedAnswer, JsonAnswer
from services.runtime.errors import InvalidRequest

KINDS = ("json", "regex", "choice", "grammar")


def answer_form(chat: ChatCompletionRequest) -> JsonAnswer | FormedAnswer | None:
    """By `response_format` or by `structured_outputs`; InvalidRequest if both, or two of the latter, are there."""
    structured = _structured(chat)
    match chat.response_format:
        case JsonSchemaFormat(json_schema=demanded):
            schema = orjson.dumps(demanded.schema_).decode()
            form = JsonAnswer(schema, "response_format.json_schema.schema", loose=demanded.strict is False)
        case JsonObjectFormat():
            form = JsonAnswer("", "response_format")
        case _:
            return structured
    if structured is not None:
        raise InvalidRequest("structured_outputs: not together with response_format", field="structured_outputs")
    return form


def _structured(chat: ChatCompletionRequest) -> JsonAnswer | FormedAnswer | None:
    asked = chat.structured_outputs
    if asked is None:
        return None
    values = dict(zip(KINDS, (asked.json_, asked.regex, asked.choice, asked.grammar), strict=True))
    given = [kind for kind in KINDS if values[kind] is not None]
    if len(given) > 1:
        raise InvalidRequest(f"structured_outputs: only one of {', '.join(KINDS)}", field="structured_outputs")
    if asked.json_ is not None:
        schema = asked.json_ if isinstance(asked.json_, str) else orjson.dumps(asked.json_).decode()
        return JsonAnswer(schema, "structured_outputs.json")
    if asked.regex is not None:
        return FormedAnswer("regex", (asked.regex,), "structured_outputs.regex")
    if asked.grammar is not None:
        return FormedAnswer("grammar", (asked.grammar,), "structured_outputs.grammar")
    if asked.choice is not None:
        return FormedAnswer("choice", tuple(asked.choice), "structured_outputs.choice")
    return None
