"""A checked Responses request as the internal form: defaults filled in, contradictions and state refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialects.responses.field_rules import RULES
from gateway.dialects.responses.items import messages_of
from gateway.dialects.responses.schema import JsonObjectFormat, JsonSchemaFormat, NamedChoice, ResponsesRequest
from gateway.dialects.responses.tools import DeclaredTools, declared_tools
from gateway.dialects.sampling import TEMPERATURE_INSTANT, TEMPERATURE_THINKING, TOP_P
from gateway.dialects.unknown_fields import ignored_fields
from gateway.http.body import check
from gateway.request.chat_model import Conversation, ForcedCall, JsonAnswer, Output, Request, Sampling
from services.runtime.errors import InvalidRequest

SEALED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """A request and what of it the answer repeats.

    ignored  what of the body has no effect
    """

    request: Request
    asked: ResponsesRequest
    tools: DeclaredTools
    ignored: tuple[str, ...]

    @property
    def seals_reasoning(self) -> bool:
        """Whether reasoning comes in packed form, too, for clients that only send that back."""
        return SEALED in (self.asked.include or ())

    @property
    def summarises(self) -> bool:
        """Whether reasoning is shown where clients look for its summary."""
        return self.asked.reasoning is not None and self.asked.reasoning.is_summarised


def parse_responses(body: Mapping[str, Any], *, refuse_unknown: bool = False) -> AskedResponse:
    """Check a body and translate it. InvalidRequest names the field that is wrong."""
    asked = check(ResponsesRequest, body)
    ignored = ignored_fields(asked, RULES, refuse_unknown=refuse_unknown)
    tools = declared_tools(asked.tools or ())
    messages = messages_of(asked.input, asked.instructions)
    if not messages:
        raise InvalidRequest("input: holds no message", field="input")
    thinking = asked.reasoning is None or asked.reasoning.is_on
    temperature = TEMPERATURE_THINKING if thinking else TEMPERATURE_INSTANT
    request = Request(
        Conversation(
            messages=messages,
            field="input",
            tools=tuple(tool.for_model for tool in tools.by_name.values()),
            thinking=thinking,
        ),
        Sampling(
            temperature=asked.temperature if asked.temperature is not None else temperature,
            top_p=asked.top_p if asked.top_p is not None else TOP_P,
            max_new_tokens=asked.max_output_tokens,
            budget_field="max_output_tokens",
            num_top_logprobs=_num_top_logprobs_of(asked),
            max_thinking_tokens=asked.reasoning.max_tokens if thinking and asked.reasoning is not None else None,
        ),
        Output(
            drop_tool_calls=not tools.by_name or asked.tool_choice == "none",
            max_tool_calls=1 if asked.parallel_tool_calls is False else 0,
        ),
        forced_call=_forced_call_of(asked, tools),
        json_answer=_json_answer_of(asked),
    )
    return AskedResponse(request, asked, tools, (*ignored, *dict.fromkeys(tools.dropped)))


def _num_top_logprobs_of(asked: ResponsesRequest) -> int | None:
    """Return the number of alternatives; None unless `include` or that number asks for log-probabilities."""
    if asked.top_logprobs or LOGPROBS in (asked.include or ()):
        return asked.top_logprobs or 0
    return None


def _forced_call_of(asked: ResponsesRequest, tools: DeclaredTools) -> ForcedCall | None:
    """Return the call that is demanded; InvalidRequest if there is no such tool."""
    choice = asked.tool_choice
    if choice in (None, "none", "auto"):
        return None
    if not tools.by_name:
        raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
    if not isinstance(choice, NamedChoice):
        return ForcedCall("", "tool_choice")
    if (name := tools.chosen(choice)) is None:
        raise InvalidRequest("tool_choice.name: no such tool", field="tool_choice.name")
    return ForcedCall(name, "tool_choice")


def _json_answer_of(asked: ResponsesRequest) -> JsonAnswer | None:
    match asked.text and asked.text.format:
        case JsonSchemaFormat(schema_=schema, strict=strict):
            return JsonAnswer(orjson.dumps(schema).decode(), "text.format.schema", loose=strict is False)
        case JsonObjectFormat(schema_=dict() as schema):
            return JsonAnswer(orjson.dumps(schema).decode(), "text.format.schema")
        case JsonObjectFormat():
            return JsonAnswer("", "text.format")
        case _:
            return None
