"""A checked Anthropic request as the internal form: defaults filled in, contradictions refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialects.messages.blocks import messages_of
from gateway.dialects.messages.field_rules import RULES
from gateway.dialects.messages.schema import (
    AutoChoice,
    ContextManagement,
    CountTokensRequest,
    CustomTool,
    MessagesRequest,
    NoChoice,
    ServerTool,
    ToolChoice,
)
from gateway.dialects.sampling import TEMPERATURE_INSTANT, TEMPERATURE_THINKING, TOP_P
from gateway.dialects.unknown_fields import ignored_fields
from gateway.http.body import check
from gateway.request.chat_model import Conversation, ForcedCall, JsonAnswer, Message, Output, Request, Sampling, Tool
from services.runtime.errors import InvalidRequest

CLEAR_THINKING = "clear_thinking_20251015"


@dataclass(frozen=True, slots=True)
class AskedMessage:
    """A request and how its answer is to be shown on this dialect."""

    request: Request
    model: str
    stream: bool
    show_thinking: bool  # false: only that there was some
    ignored: tuple[str, ...]  # fields of the body that have no effect


@dataclass(frozen=True, slots=True)
class AskedCount:
    """What becomes a prompt, for the model of this name."""

    model: str
    conversation: Conversation
    ignored: tuple[str, ...]


def parse_messages(body: Mapping[str, Any], *, default_thinking: bool, refuse_unknown: bool = False) -> AskedMessage:
    """Check the body of POST /v1/messages and translate it. InvalidRequest names the field that is wrong."""
    asked = check(MessagesRequest, body)
    ignored = _ignored(asked, refuse_unknown=refuse_unknown)
    conversation = _conversation_of(asked, default_thinking=default_thinking)
    thinking = asked.thinking
    budget = None if thinking is None or thinking.type != "enabled" else thinking.budget_tokens
    if budget is not None and budget >= asked.max_tokens:
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
            max_thinking_tokens=budget,
        ),
        Output(
            drop_tool_calls=not conversation.tools or isinstance(choice, NoChoice),
            stop=tuple(asked.stop_sequences or ()),
            max_tool_calls=1 if one_call else 0,
        ),
        forced_call=_forced_call_of(asked),
        json_answer=form,
    )
    omitted = thinking is not None and thinking.display == "omitted"
    return AskedMessage(request, asked.model, stream=asked.stream is True, show_thinking=not omitted, ignored=ignored)


def parse_count(body: Mapping[str, Any], *, default_thinking: bool, refuse_unknown: bool = False) -> AskedCount:
    """Check the body of POST /v1/messages/count_tokens, where fields of the answer may be left out."""
    asked = check(CountTokensRequest, body)
    # A client may send the whole body of the request that it is going to make.
    known = asked if "max_tokens" not in body else check(MessagesRequest, body)
    ignored = _ignored(known, refuse_unknown=refuse_unknown)
    return AskedCount(asked.model, _conversation_of(asked, default_thinking=default_thinking), ignored)


def _ignored(asked: CountTokensRequest, *, refuse_unknown: bool) -> tuple[str, ...]:
    """Return what has no effect: fields, tools of other servers, and edits of the context that are not done."""
    edits = asked.context_management.edits if asked.context_management is not None else None
    return (
        *ignored_fields(asked, RULES, refuse_unknown=refuse_unknown),
        *(f"tools.{tool.type}" for tool in asked.tools or () if isinstance(tool, ServerTool)),
        *(f"context_management.{edit.type or 'edits'}" for edit in edits or () if edit.type != CLEAR_THINKING),
    )


def _conversation_of(asked: CountTokensRequest, *, default_thinking: bool) -> Conversation:
    thinking = asked.thinking
    if thinking is not None and thinking.type == "enabled" and thinking.budget_tokens is None:
        raise InvalidRequest("thinking.budget_tokens: this field is required", field="thinking.budget_tokens")
    enabled = default_thinking if thinking is None else thinking.type != "disabled"
    messages = messages_of(asked.messages, asked.system)
    continued = bool(messages) and _is_beginning(messages[-1])
    return Conversation(
        messages=messages,
        tools=_tools_of(asked),
        thinking=enabled,
        preserve_thinking=enabled and _keeps_all_thinking(asked.context_management),
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )


def _is_beginning(last: Message) -> bool:
    """Return whether the answer goes on from the last message. After tool calls there is nothing to go on with."""
    return last.role == "assistant" and not last.tool_calls


def _keeps_all_thinking(management: ContextManagement | None) -> bool:
    """Return whether one of the edits says so."""
    edits = management.edits if management is not None else None
    return any(edit.type == CLEAR_THINKING and edit.keep in ("all", {"type": "all"}) for edit in edits or ())


def _tools_of(asked: CountTokensRequest) -> tuple[Tool, ...]:
    """Return the tools of the client in the form in which the template declares them."""
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(asked.tools or ()):
        if isinstance(tool, ServerTool):
            continue
        if tool.name in tools:
            raise InvalidRequest(f"tools.{index}.name: declared twice", field=f"tools.{index}.name")
        tools[tool.name] = Tool({"type": "function", "function": _function_of(tool)})
    _refuse_impossible_choice(asked, set(tools))
    return tuple(tools.values())


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
