"""A checked chat completion request as the internal form: defaults filled in, contradictions refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.dialects.answer_form import answer_form
from gateway.dialects.chat.field_rules import RULES
from gateway.dialects.chat.messages import messages_of
from gateway.dialects.chat.policy import ParamPolicy, refuse_by_policy
from gateway.dialects.chat.schema import BuiltinTool, ChatCompletionRequest, NamedChoice
from gateway.dialects.chat.thinking import resolve_thinking
from gateway.dialects.chat.web_search import DECLARATION, answer_echoes
from gateway.dialects.sampling import (
    TEMPERATURE_INSTANT,
    TEMPERATURE_THINKING,
    refuse_sampling_contradictions,
    sampling_from,
)
from gateway.dialects.unknown_fields import ignored_fields
from gateway.http.body import check
from gateway.request.chat_model import Conversation, ForcedCall, Message, Output, Request, Tool
from services.runtime.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request and how its answer is to be shown on this dialect."""

    request: Request
    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    show_reasoning: bool
    ignored: tuple[str, ...]  # fields of the body that have no effect


def parse_chat(
    body: Mapping[str, Any], max_choices: int, policy: ParamPolicy = "open", *, refuse_unknown: bool = False
) -> ChatRequest:
    """Check a body and translate it. InvalidRequest names the field that is wrong."""
    chat = check(ChatCompletionRequest, body)
    ignored = ignored_fields(chat, RULES, refuse_unknown=refuse_unknown)
    _refuse_contradictions(chat, max_choices)
    thinking = resolve_thinking(chat)
    refuse_by_policy(policy, chat, thinking=thinking.enabled)
    messages = answer_echoes(messages_of(chat.messages))
    continued = _is_continued(chat, messages)
    tools = _tools_of(chat, body)
    request = Request(
        Conversation(
            messages=messages,
            tools=tools,
            thinking=thinking.enabled,
            preserve_thinking=thinking.preserve,
            add_generation_prompt=not continued and chat.add_generation_prompt is not False,
            continue_final_message=continued,
        ),
        sampling_from(
            chat,
            temperature=TEMPERATURE_THINKING if thinking.enabled else TEMPERATURE_INSTANT,
            token_limit=chat.token_limit,
            num_top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
            num_prompt_logprobs=chat.prompt_logprobs,
            max_thinking_tokens=thinking.budget if thinking.enabled else None,
        ),
        Output(
            drop_tool_calls=not tools or chat.tool_choice == "none",
            stop=chat.stops,
            include_stop=chat.include_stop_str_in_output is True,
            max_tool_calls=1 if chat.parallel_tool_calls is False else 0,
        ),
        num_choices=chat.n or 1,
        forced_call=_forced_call_of(chat),
        json_answer=answer_form(chat),
    )
    options = chat.stream_options
    return ChatRequest(
        request,
        chat.model,
        stream=chat.stream is True,
        include_usage=options is not None and options.include_usage is True,
        continuous_usage=options is not None and options.continuous_usage_stats is True,
        show_reasoning=thinking.shown,
        ignored=ignored,
    )


def _tools_of(chat: ChatCompletionRequest, body: Mapping[str, Any]) -> tuple[Tool, ...]:
    """Return the tools as the client declared them, every key included."""
    return tuple(
        Tool(DECLARATION if isinstance(checked, BuiltinTool) else tool)
        for checked, tool in zip(chat.tools or (), body.get("tools") or (), strict=True)
    )


def _refuse_contradictions(chat: ChatCompletionRequest, max_choices: int) -> None:
    """Refuse values that contradict each other."""
    refuse_sampling_contradictions(chat, max_tokens=chat.token_limit[1], max_choices=max_choices)
    if chat.top_logprobs and chat.logprobs is not True:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", field="top_logprobs")
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: not together with add_generation_prompt", field="continue_final_message"
        )
    _refuse_tool_contradictions(chat)


def _refuse_tool_contradictions(chat: ChatCompletionRequest) -> None:
    names = [tool.function.name for tool in chat.tools or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"tools.{index}.function.name: declared twice", field=f"tools.{index}.function.name")
    choice = chat.tool_choice
    if choice not in (None, "none", "auto") and not names:
        raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise InvalidRequest("tool_choice.function.name: no such tool", field="tool_choice.function.name")


def _forced_call_of(chat: ChatCompletionRequest) -> ForcedCall | None:
    match chat.tool_choice:
        case NamedChoice(function=function):
            return ForcedCall(function.name, "tool_choice")
        case "required":
            return ForcedCall("", "tool_choice")
        case _:
            return None


def _is_continued(chat: ChatCompletionRequest, messages: tuple[Message, ...]) -> bool:
    """Return whether generation goes on from the last message, asked for in Kimi's or in vLLM's way."""
    if not (chat.messages[-1].partial or chat.continue_final_message):
        return False
    if form := answer_form(chat):
        raise InvalidRequest(f"{form.field}: not together with a message to continue", field=form.field)
    last = f"messages.{len(messages) - 1}"
    if messages[-1].role != "assistant":
        raise InvalidRequest(
            f"{last}.role: continue_final_message needs an assistant's message at the end", field=f"{last}.role"
        )
    if messages[-1].tool_calls:
        raise InvalidRequest(
            f"{last}.tool_calls: a message with tool calls cannot be continued", field=f"{last}.tool_calls"
        )
    return True
