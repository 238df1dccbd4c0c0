"""A checked Responses request as the internal form: defaults filled in, contradictions and state refused."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialects.responses.items import messages_of
from gateway.dialects.responses.schema import (
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedChoice,
    ResponsesRequest,
)
from gateway.dialects.sampling import TEMPERATURE_INSTANT, TEMPERATURE_THINKING, TOP_P
from gateway.http.body import check
from gateway.request.chat_model import Conversation, ForcedCall, JsonAnswer, Output, Request, Sampling
from services.runtime.errors import InvalidRequest

log = logging.getLogger(__name__)

# Each would need a response that a server keeps.
STATEFUL = ("previous_response_id", "conversation", "prompt")
SEALED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class AskedResponse:
    """A request and what of it the answer repeats."""

    request: Request
    asked: ResponsesRequest
    functions: tuple[FunctionTool, ...]

    @property
    def seals_reasoning(self) -> bool:
        """Whether reasoning comes in packed form, too, for clients that only send that back."""
        return SEALED in (self.asked.include or ())


def parse_responses(body: Mapping[str, Any]) -> AskedResponse:
    """Checks and translates a body. InvalidRequest names the field that is wrong."""
    asked = check(ResponsesRequest, body)
    _refuse_unsupported(asked, body)
    functions = _functions_of(asked)
    _refuse_impossible_choice(asked, {function.name for function in functions})
    messages = messages_of(asked.input, asked.instructions)
    if not messages:
        raise InvalidRequest("input: holds no message", field="input")
    thinking = asked.reasoning is None or asked.reasoning.effort != "none"
    temperature = TEMPERATURE_THINKING if thinking else TEMPERATURE_INSTANT
    declared = [{"type": "function", "function": _declaration_of(function)} for function in functions]
    request = Request(
        Conversation(
            messages=messages,
            tools_json=orjson.dumps(declared).decode() if declared else "",
            thinking=thinking,
        ),
        Sampling(
            temperature=asked.temperature if asked.temperature is not None else temperature,
            top_p=asked.top_p if asked.top_p is not None else TOP_P,
            max_new_tokens=asked.max_output_tokens,
            budget_field="max_output_tokens",
            num_top_logprobs=_num_top_logprobs_of(asked),
        ),
        Output(
            drop_tool_calls=not declared or asked.tool_choice == "none",
            max_tool_calls=1 if asked.parallel_tool_calls is False else 0,
        ),
        forced_call=_forced_call_of(asked),
        json_answer=_json_answer_of(asked),
    )
    return AskedResponse(request, asked, functions)


def _refuse_unsupported(asked: ResponsesRequest, body: Mapping[str, Any]) -> None:
    for name in STATEFUL:
        if body.get(name) is not None:
            raise InvalidRequest(f"{name} is not supported: this server keeps no responses", field=name)
    if asked.background:
        raise InvalidRequest("background is not supported: this server keeps no responses", field="background")


def _functions_of(asked: ResponsesRequest) -> tuple[FunctionTool, ...]:
    functions: dict[str, FunctionTool] = {}
    for index, tool in enumerate(asked.tools or ()):
        if not isinstance(tool, FunctionTool):
            log.info("tool dropped", extra={"kind": tool.type[:64]})
        elif tool.name in functions:
            raise InvalidRequest(f"tools.{index}.name: declared twice", field=f"tools.{index}.name")
        else:
            functions[tool.name] = tool
    return tuple(functions.values())


def _declaration_of(function: FunctionTool) -> dict[str, Any]:
    return function.model_dump(include={"name", "description", "parameters", "strict"}, exclude_none=True)


def _refuse_impossible_choice(asked: ResponsesRequest, names: set[str]) -> None:
    choice = asked.tool_choice
    if choice not in (None, "none", "auto") and not names:
        raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
    if isinstance(choice, NamedChoice) and choice.name not in names:
        raise InvalidRequest("tool_choice.name: no such tool", field="tool_choice.name")


def _num_top_logprobs_of(asked: ResponsesRequest) -> int | None:
    """Log-probabilities come if `include` or a number of alternatives asks for them."""
    if asked.top_logprobs or LOGPROBS in (asked.include or ()):
        return asked.top_logprobs or 0
    return None


def _forced_call_of(asked: ResponsesRequest) -> ForcedCall | None:
    match asked.tool_choice:
        case NamedChoice(name=name):
            return ForcedCall(name, "tool_choice")
        case "required":
            return ForcedCall("", "tool_choice")
        case _:
            return None


def _json_answer_of(asked: ResponsesRequest) -> JsonAnswer | None:
    match asked.text and asked.text.format:
        case JsonSchemaFormat(schema_=schema, strict=strict):
            return JsonAnswer(orjson.dumps(schema).decode(), "text.format.schema", loose=strict is False)
        case JsonObjectFormat():
            return JsonAnswer("", "text.format")
        case _:
            return None
