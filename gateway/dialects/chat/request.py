"""A checked chat completion request as the internal form: defaults filled in, contradictions refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.dialects.chat.answer_form import answer_form
from gateway.dialects.chat.messages import messages_of
from gateway.dialects.chat.policy import ParamPolicy, refuse_by_policy
from gateway.dialects.chat.schema import ChatCompletionRequest, NamedChoice
from gateway.dialects.chat.thinking import resolve_thinking
from gateway.dialects.chat.unsupported import refuse_unsupported
from gateway.dialects.chat.web_search import answer_echoes, declared
from gateway.dialects.sampling import (
    TEMPERATURE_INSTANT,
    TEMPERATURE_THINKING,
    refuse_sampling_contradictions,
    sampling_from,
)
from gateway.http.body import check
from gateway.request.chat_model import Conversation, ForcedCall, Message, Output, Request
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


def parse_chat(body: Mapping[str, Any], max_choices: int, policy: ParamPolicy = "open") -> ChatRequest:
    """Checks and translates a body. InvalidRequest names the field that is wrong."""
    chat = check(ChatCompletionRequest, body)
    _refuse_contradictions(chat, max_choices)
    refuse_unsupported(body)
    thinking = resolve_thinking(chat)
    refuse_by_policy(policy, chat, thinking=thinking.enabled)
    messages = answer_echoes(messages_of(chat.messages))
    continued = _is_continued(chat, messages)
    tools = declared(body["tools"]) if chat.tools else None
    request = Request(
        Conversation(
            messages=messages,
            tools_json=orjson.dumps(tools).decode() if tools else "",
            thinking=thinking.enabled,
            preserve_thinking=thinking.preserve,
            add_generation_prompt=not continued and chat.add_generation_prompt is not False,
            continue_final_message=continued,
        ),
        sampling_from(
            chat,
            temperature=TEMPERATURE_THINKING if thinking.enabled else TEMPERATURE_INSTANT,
            max_tokens=chat.max_completion_tokens or chat.max_tokens,
            num_top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
            budget_field="max_completion_tokens" if chat.max_completion_tokens else "max_tokens",
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
        show_reasoning=thinking.enabled and chat.include_reasoning is not False,
    )


def _refuse_contradictions(chat: ChatCompletionRequest, max_choices: int) -> None:
    """What no single field's type can say."""
    refuse_sampling_contradictions(
        chat, max_tokens=chat.max_completion_tokens or chat.max_tokens, max_choices=max_choices
    )
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
    """Whether generation goes on from the last message, asked for in Kimi's or in vLLM's way."""
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
