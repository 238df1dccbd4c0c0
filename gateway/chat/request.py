"""A checked chat completion request as the internal form: defaults filled in, contradictions refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.body import check, quote
from gateway.chat.messages import messages_of
from gateway.chat.schema import ChatCompletionRequest, NamedChoice
from gateway.chat.thinking import resolve_thinking
from gateway.chat.unsupported import refuse_unsupported
from gateway.internal import Conversation, Message, Output, Request, Sampling
from services.runtime.errors import InvalidRequest

TEMPERATURE_THINKING = 1.0
TEMPERATURE_INSTANT = 0.6
TOP_P = 0.95
MAX_ID_DIGITS = 9


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request and how its answer is to be shown on this face."""

    request: Request
    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    show_reasoning: bool


def parse_chat(body: Mapping[str, Any], max_choices: int) -> ChatRequest:
    """Checks and translates a body. InvalidRequest names the field that is wrong."""
    chat = check(ChatCompletionRequest, body)
    _refuse_contradictions(chat, max_choices)
    refuse_unsupported(body)
    thinking = resolve_thinking(chat)
    messages = messages_of(chat.messages)
    continued = _is_continued(chat, messages)
    tools = body["tools"] if chat.tools else None
    request = Request(
        Conversation(
            messages=messages,
            tools_json=orjson.dumps(tools).decode() if tools else "",
            thinking=thinking.enabled,
            preserve_thinking=thinking.preserve,
            add_generation_prompt=not continued and chat.add_generation_prompt is not False,
            continue_final_message=continued,
        ),
        _sampling_of(chat, thinking.enabled),
        Output(
            drop_tool_calls=not tools or chat.tool_choice == "none",
            stop=_stop_of(chat),
            include_stop=chat.include_stop_str_in_output is True,
            max_tool_calls=1 if chat.parallel_tool_calls is False else 0,
        ),
        num_choices=chat.n or 1,
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
    if chat.n is not None and chat.n > max_choices:
        raise InvalidRequest(f"n: at most {max_choices} choices are possible", field="n")
    if chat.stream_options is not None and chat.stream is not True:
        raise InvalidRequest("stream_options: only allowed when stream is true", field="stream_options")
    if chat.top_logprobs and chat.logprobs is not True:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", field="top_logprobs")
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message: not together with add_generation_prompt", field="continue_final_message"
        )
    max_tokens = chat.max_completion_tokens or chat.max_tokens
    if max_tokens is not None and chat.min_tokens is not None and chat.min_tokens > max_tokens:
        raise InvalidRequest(f"min_tokens: more than the {max_tokens} tokens that are allowed", field="min_tokens")
    for key in chat.logit_bias or {}:
        if not (key.isascii() and key.isdecimal() and len(key) <= MAX_ID_DIGITS):
            raise InvalidRequest(f"logit_bias: {quote(key)} is not a token id", field="logit_bias")
    _refuse_tool_contradictions(chat)


def _refuse_tool_contradictions(chat: ChatCompletionRequest) -> None:
    names = [tool.function.name for tool in chat.tools or ()]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidRequest(f"tools.{index}.function.name: declared twice", field=f"tools.{index}.function.name")
    choice = chat.tool_choice
    if choice in (None, "none", "auto"):
        return
    if not names:
        raise InvalidRequest("tool_choice: demands a tool, but there are no tools", field="tool_choice")
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise InvalidRequest("tool_choice.function.name: no such tool", field="tool_choice.function.name")
    raise InvalidRequest("tool_choice: required and named functions are not supported yet", field="tool_choice")


def _is_continued(chat: ChatCompletionRequest, messages: tuple[Message, ...]) -> bool:
    """Whether generation goes on from the last message, asked for in Kimi's or in vLLM's way."""
    if not (chat.messages[-1].partial or chat.continue_final_message):
        return False
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


def _sampling_of(chat: ChatCompletionRequest, thinking: bool) -> Sampling:
    default = TEMPERATURE_THINKING if thinking else TEMPERATURE_INSTANT
    return Sampling(
        temperature=chat.temperature if chat.temperature is not None else default,
        top_p=chat.top_p if chat.top_p is not None else TOP_P,
        seed=chat.seed,
        max_new_tokens=chat.max_completion_tokens or chat.max_tokens,
        min_new_tokens=chat.min_tokens or 0,
        stop_token_ids=tuple(chat.stop_token_ids or ()),
        ignore_eos=chat.ignore_eos is True,
        top_k=max(0, chat.top_k or 0),
        min_p=chat.min_p or 0.0,
        presence_penalty=chat.presence_penalty or 0.0,
        frequency_penalty=chat.frequency_penalty or 0.0,
        repetition_penalty=chat.repetition_penalty or 1.0,
        logit_bias=tuple((int(key), bias) for key, bias in (chat.logit_bias or {}).items()),
    )


def _stop_of(chat: ChatCompletionRequest) -> tuple[str, ...]:
    match chat.stop:
        case None:
            return ()
        case str():
            return (chat.stop,)
        case _:
            return tuple(chat.stop)
