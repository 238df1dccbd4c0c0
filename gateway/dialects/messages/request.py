"""A checked Anthropic request as the internal form: defaults filled in, contradictions refused."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialects.messages.blocks import messages_of
from gateway.dialects.messages.schema import (
    AutoChoice,
    CountTokensRequest,
    CustomTool,
    MessagesRequest,
    NoChoice,
    ServerTool,
    ToolChoice,
)
from gateway.dialects.sampling import TEMPERATURE_INSTANT, TEMPERATURE_THINKING, TOP_P
from gateway.http.body import check
from gateway.request.chat_model import Conversation, ForcedCall, JsonAnswer, Message, Output, Request, Sampling
from services.runtime.errors import InvalidRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AskedMessage:
    """A request and how its answer is to be shown on this dialect."""

    request: Request
    model: str
    stream: bool
    show_thinking: bool  # false: only that there was some


def parse_messages(body: Mapping[str, Any], *, default_thinking: bool) -> AskedMessage:
    """Checks and translates the body of POST /v1/messages. InvalidRequest names the field that is wrong."""
    asked = check(MessagesRequest, body)
    conversation = _conversation_of(asked, body, default_thinking=default_thinking)
    thinking = asked.thinking
    if thinking is not None and thinking.type == "enabled" and (thinking.budget_tokens or 0) >= asked.max_tokens:
        raise InvalidRequest("thinking.budget_tokens: must be less than max_tokens", field="thinking.budget_tokens")
    form = _json_answer_of(asked)
    if form is not None and conversation.continue_final_message:
        raise InvalidRequest(f"{form.field}: not together with a message to continue", field=form.field)
    choice = asked.tool_choice
    one_call = not isinstance(choice, NoChoice | None) and choice.disable_parallel_tool_use is True
    temperature = TEMPERATURE_THINKING if conversation.thinking else TEMPERATURE_INSTANT
    request = Request(
        conversation,
        Sampling(
            temperature=asked.temperature if asked.temperature is not None else temperature,
            top_p=asked.top_p if asked.top_p is not None else TOP_P,
            top_k=max(0, asked.top_k or 0),
            max_new_tokens=asked.max_tokens,
        ),
        Output(
            drop_tool_calls=not conversation.tools_json or isinstance(choice, NoChoice),
            stop=tuple(asked.stop_sequences or ()),
            max_tool_calls=1 if one_call else 0,
        ),
        forced_call=_forced_call_of(asked),
        json_answer=form,
    )
    omitted = thinking is not None and thinking.display == "omitted"
    return AskedMessage(request, asked.model, stream=asked.stream is True, show_thinking=not omitted)


def parse_count(body: Mapping[str, Any], *, default_thinking: bool) -> tuple[str, Conversation]:
    """The same for POST /v1/messages/count_tokens: the model and what becomes the prompt."""
    asked = check(CountTokensRequest, body)
    return asked.model, _conversation_of(asked, body, default_thinking=default_thinking)


def _conversation_of(asked: CountTokensRequest, body: Mapping[str, Any], *, default_thinking: bool) -> Conversation:
    thinking = asked.thinking
    if thinking is not None and thinking.type == "enabled" and thinking.budget_tokens is None:
        raise InvalidRequest("thinking.budget_tokens: this field is required", field="thinking.budget_tokens")
    enabled = default_thinking if thinking is None else thinking.type != "disabled"
    messages = messages_of(asked.messages, asked.system)
    continued = bool(messages) and _is_beginning(messages[-1])
    return Conversation(
        messages=messages,
        tools_json=_tools_json_of(asked),
        thinking=enabled,
        preserve_thinking=enabled and _keeps_all_thinking(body.get("context_management")),
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )


def _is_beginning(last: Message) -> bool:
    """Whether the answer goes on from the last message. After tool calls there is nothing to go on with."""
    return last.role == "assistant" and not last.tool_calls


def _keeps_all_thinking(management: object) -> bool:
    """Whether one of the edits says so. Whatever else the field holds has no effect, right or wrong."""
    edits = management.get("edits") if isinstance(management, dict) else None
    return isinstance(edits, list) and any(
        isinstance(edit, dict)
        and edit.get("type") == "clear_thinking_20251015"
        and edit.get("keep") in ("all", {"type": "all"})
        for edit in edits
    )


def _tools_json_of(asked: CountTokensRequest) -> str:
    """The tools in the form in which the template declares them; empty without any."""
    declared: list[dict[str, Any]] = []
    names: set[str] = set()
    for index, tool in enumerate(asked.tools or ()):
        if isinstance(tool, ServerTool):
            log.info("server tool dropped", extra={"kind": tool.type[:64]})
            continue
        if tool.name in names:
            raise InvalidRequest(f"tools.{index}.name: declared twice", field=f"tools.{index}.name")
        names.add(tool.name)
        declared.append({"type": "function", "function": _function_of(tool)})
    _refuse_impossible_choice(asked, names)
    return orjson.dumps(declared).decode() if declared else ""


def _function_of(tool: CustomTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = (
        tool.input_schema if "type" in tool.input_schema else {"type": "object", **tool.input_schema}
    )
    if tool.strict is not None:
        function["strict"] = tool.strict
    return function


def _refuse_impossible_choice(asked: CountTokensRequest, names: set[str]) -> None:
    match asked.tool_choice:
        case AutoChoice(type="any") | ToolChoice() if not names:
            raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
        case ToolChoice(name=name) if name not in names:
            raise InvalidRequest("tool_choice.name: no such tool", field="tool_choice.name")


def _forced_call_of(asked: MessagesRequest) -> ForcedCall | None:
    match asked.tool_choice:
        case AutoChoice(type="any"):
            return ForcedCall("", "tool_choice")
        case ToolChoice(name=name):
            return ForcedCall(name, "tool_choice")
        case _:
            return None


def _json_answer_of(asked: MessagesRequest) -> JsonAnswer | None:
    if asked.output_config is not None and asked.output_config.format is not None:
        return JsonAnswer(orjson.dumps(asked.output_config.format.schema_).decode(), "output_config.format.schema")
    if asked.output_format is not None:
        return JsonAnswer(orjson.dumps(asked.output_format.schema_).decode(), "output_format.schema")
    return None
