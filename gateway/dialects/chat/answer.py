"""Answers of a chat completion: one JSON object, or the chunks of a stream."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from gateway.dialects.chat.answer_types import (
    AnswerHead,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionWithPrompt,
    ChatMessage,
    ChoiceLogprobs,
    ChunkChoice,
    ChunkWithUsage,
    CompletionUsage,
    Delta,
    ToolCallDelta,
)
from gateway.dialects.left_out import NO_NOTES, Noted, notes_of
from gateway.dialects.logprobs import content_logprobs, prompt_logprobs
from gateway.http.errors import openai_error
from gateway.http.sse import DONE, KEEP_ALIVE, data_event
from gateway.request.answer_model import (
    AnswerEvent,
    CallArguments,
    CallStart,
    ChoiceAnswer,
    Content,
    Finish,
    Reasoning,
    TokenLogprob,
    Usage,
)
from services.runtime.errors import MoonshardError

ReasoningFields = Literal["reasoning_content", "reasoning", "both"]


@dataclass(frozen=True, slots=True)
class ChatStyle:
    """How a request wants its answer, and what every part of the answer repeats.

    model  as requested
    """

    model: str
    fingerprint: str
    show_reasoning: bool
    show_logprobs: bool
    show_prompt_logprobs: bool
    include_usage: bool
    continuous_usage: bool
    reasoning_fields: ReasoningFields
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: Literal["chat.completion", "chat.completion.chunk"]) -> AnswerHead:
        """Return the beginning of an answer object."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_of(usage: Usage) -> CompletionUsage:
    """Return the counts as the OpenAI dialects write them."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        "cached_tokens": usage.num_cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
    }


def whole_answer(
    style: ChatStyle, choices: Sequence[ChoiceAnswer], usage: Usage
) -> ChatCompletion | ChatCompletionWithPrompt:
    """Return the body of an answer that is not streamed."""
    answer: ChatCompletion = {
        **style.head("chat.completion"),
        "choices": [_choice_of(index, choice, style) for index, choice in enumerate(choices)],
        "usage": usage_of(usage),
        **notes_of(usage),
    }
    if style.show_prompt_logprobs:
        return {**answer, "prompt_logprobs": prompt_logprobs(choices[0].prompt)}
    return answer


def _choice_of(index: int, choice: ChoiceAnswer, style: ChatStyle) -> ChatChoice:
    return {
        "index": index,
        "finish_reason": choice.finish.reason,
        "matched_stop": choice.finish.matched_stop,
        "logprobs": _logprobs_of(choice.logprobs) if style.show_logprobs else None,
        "message": _message_of(choice, show_reasoning=style.show_reasoning),
    }


def _message_of(choice: ChoiceAnswer, *, show_reasoning: bool) -> ChatMessage:
    message: ChatMessage = {"role": "assistant", "content": choice.content, "refusal": None}
    if show_reasoning:
        message["reasoning_content"] = message["reasoning"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return message


def _logprobs_of(tokens: Sequence[TokenLogprob]) -> ChoiceLogprobs:
    return {"content": content_logprobs(tokens), "refusal": None}


class ChunkWriter:
    """Turns events into the chunks of one stream. Remembers which choices have begun."""

    def __init__(self, style: ChatStyle, usage: Usage) -> None:
        self._head = style.head("chat.completion.chunk")
        self._style = style
        self._usage = usage
        self._no_reasoning: Delta = self._reasoning(None) if style.show_reasoning else Delta()
        self._begun: set[int] = set()

    def write(self, events: Sequence[AnswerEvent]) -> bytes:
        """Write the chunks of these events, each as one server-sent event; a choice's first is preceded by its role."""
        return b"".join(chunk for event in events for chunk in self._chunks_of(event))

    def keep_alive(self) -> bytes:
        """Write a comment."""
        return KEEP_ALIVE

    def last(self) -> bytes:
        """Write the mark of the end, and before it the usage in a chunk without choices, if it was asked for."""
        if not self._style.include_usage:
            return DONE
        chunk: ChunkWithUsage = {**self._head, "choices": [], **NO_NOTES, "usage": usage_of(self._usage)}
        return data_event(orjson.dumps(chunk)) + DONE

    def fail(self, error: MoonshardError) -> bytes:
        """Write the error as the last chunk."""
        return data_event(orjson.dumps(openai_error(error))) + DONE

    def _chunks_of(self, event: AnswerEvent) -> Iterator[bytes]:
        index = event.choice
        if index not in self._begun:
            self._begun.add(index)
            delta: Delta = {"role": "assistant", "content": "", **self._no_reasoning}
            yield self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
        if isinstance(event, Finish):
            choice: ChunkChoice = {
                "index": index,
                "delta": {**self._no_reasoning},
                "logprobs": None,
                "finish_reason": event.reason,
                "matched_stop": event.matched_stop,
                "usage": usage_of(self._usage),
            }
            yield self._chunk(choice)
        elif (shown := self._delta_of(event)) is not None:
            logprobs = _logprobs_of(event.logprobs) if isinstance(event, Content) and event.logprobs else None
            yield self._chunk({"index": index, "delta": shown, "logprobs": logprobs, "finish_reason": None})

    def _chunk(self, choice: ChunkChoice) -> bytes:
        notes: Noted = notes_of(self._usage) if choice["finish_reason"] is not None else NO_NOTES
        if self._style.continuous_usage or self._style.include_usage:
            usage = usage_of(self._usage) if self._style.continuous_usage else None
            with_usage: ChunkWithUsage = {**self._head, "choices": [choice], **notes, "usage": usage}
            return data_event(orjson.dumps(with_usage))
        chunk: ChatCompletionChunk = {**self._head, "choices": [choice], **notes}
        return data_event(orjson.dumps(chunk))

    def _delta_of(self, event: AnswerEvent) -> Delta | None:
        """Return the delta of an event; None if the client is not shown it."""
        match event:
            case Content():
                return {"content": event.text, **self._no_reasoning}
            case Reasoning():
                return self._reasoning(event.text) if self._style.show_reasoning else None
            case CallStart():
                call: ToolCallDelta = {
                    "index": event.index,
                    "id": event.id,
                    "type": "function",
                    "function": {"name": event.name, "arguments": ""},
                }
                return {**self._no_reasoning, "tool_calls": [call]}
            case CallArguments():
                more: ToolCallDelta = {"index": event.index, "function": {"arguments": event.text}}
                return {**self._no_reasoning, "tool_calls": [more]}
            case _:
                return None

    def _reasoning(self, text: str | None) -> Delta:
        """Return the field or fields of the reasoning. Clients read them without asking whether they are there."""
        match self._style.reasoning_fields:
            case "both":
                return {"reasoning_content": text, "reasoning": text}
            case "reasoning":
                return {"reasoning": text}
            case _:
                return {"reasoning_content": text}
