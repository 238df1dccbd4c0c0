"""Answers of a chat completion: one JSON object, or the chunks of a stream."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.dialects.left_out import notes_of
from gateway.http.errors import openai_error
from gateway.http.sse import DONE, KEEP_ALIVE, data_event
from gateway.request.chat_model import (
    CallArguments,
    CallEnd,
    CallStart,
    ChoiceAnswer,
    Content,
    Event,
    Finish,
    Reasoning,
    TokenLogprob,
    Usage,
)
from services.runtime.errors import MoonshardError

NEVER_LOGPROB = -9999.0

ReasoningFields = Literal["reasoning_content", "reasoning", "both"]


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What every chunk of an answer repeats."""

    model: str  # as requested
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, kind: str) -> dict[str, Any]:
        """The beginning of an answer object."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage_of(usage: Usage) -> dict[str, Any]:
    """The counts, cached and reasoning tokens in both places where clients look."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_completion_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_completion_tokens,
        "cached_tokens": usage.num_cached_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
    }


def logprobs_of(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """The tokens of a choice's content, each with those that might have come in its place."""
    return {
        "content": [
            {
                **_token_of(token.token, token.logprob),
                "top_logprobs": [_token_of(other, logprob) for other, logprob in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _token_of(token: bytes, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; the APIs say -9999 for a token that cannot come.
    return {"token": token.decode(errors="replace"), "logprob": max(logprob, NEVER_LOGPROB), "bytes": list(token)}


def whole_answer(
    head: AnswerHead, choices: Sequence[ChoiceAnswer], usage: Usage, *, show_reasoning: bool, show_logprobs: bool
) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return {
        **head.fields("chat.completion"),
        "choices": [
            {
                "index": index,
                "finish_reason": choice.finish,
                "logprobs": logprobs_of(choice.logprobs) if show_logprobs else None,
                "message": _message_of(choice, show_reasoning=show_reasoning),
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage_of(usage),
        **notes_of(usage),
    }


def _message_of(choice: ChoiceAnswer, *, show_reasoning: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if show_reasoning:
        message |= {"reasoning_content": choice.reasoning, "reasoning": choice.reasoning}
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return message


class ChunkWriter:
    """Turns events into the chunks of one stream. Remembers which choices have begun."""

    def __init__(
        self,
        head: AnswerHead,
        usage: Usage,
        *,
        reasoning_fields: ReasoningFields,
        show_reasoning: bool,
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        self._head = head.fields("chat.completion.chunk")
        self._usage = usage
        self._reasoning_fields = (
            ("reasoning_content", "reasoning") if reasoning_fields == "both" else (reasoning_fields,)
        )
        self._show_reasoning = show_reasoning
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._begun: set[int] = set()

    def write(self, events: Sequence[Event]) -> bytes:
        """The chunks of these events, each as one server-sent event; a choice's first is preceded by its role."""
        return b"".join(chunk for event in events for chunk in self._chunks_of(event))

    def keep_alive(self) -> bytes:
        """A comment."""
        return KEEP_ALIVE

    def last(self) -> bytes:
        """The end, and before it, if it was asked for, the chunk after all choices that only carries the usage."""
        if not self._include_usage:
            return DONE
        return data_event(orjson.dumps({**self._head, "choices": [], "usage": usage_of(self._usage)})) + DONE

    def fail(self, error: MoonshardError) -> bytes:
        """The error as the last chunk."""
        return data_event(orjson.dumps(openai_error(error))) + DONE

    def _chunks_of(self, event: Event) -> Iterator[bytes]:
        if event.choice not in self._begun:
            self._begun.add(event.choice)
            yield self._chunk({"index": event.choice, "delta": {"role": "assistant", "content": ""}})
        if isinstance(event, Finish):
            yield self._chunk({"index": event.choice, "delta": {}, "usage": usage_of(self._usage)}, event.reason)
        elif delta := self._delta_of(event):
            logprobs = logprobs_of(event.logprobs) if isinstance(event, Content) and event.logprobs else None
            yield self._chunk({"index": event.choice, "delta": delta, "logprobs": logprobs})

    def _chunk(self, choice: dict[str, Any], finish_reason: str | None = None) -> bytes:
        chunk = {**self._head, "choices": [{"logprobs": None, **choice, "finish_reason": finish_reason}]}
        if finish_reason is not None:
            chunk |= notes_of(self._usage)
        if self._continuous_usage:
            chunk["usage"] = usage_of(self._usage)
        elif self._include_usage:
            chunk["usage"] = None
        return data_event(orjson.dumps(chunk))

    def _delta_of(self, event: Event) -> dict[str, Any]:
        """What a delta carries for an event; empty if the client isn't told."""
        match event:
            case Content():
                return {"content": event.text}
            case Reasoning():
                return dict.fromkeys(self._reasoning_fields, event.text) if self._show_reasoning else {}
            case CallStart():
                function = {"name": event.name, "arguments": ""}
                call = {"index": event.index, "id": event.id, "type": "function", "function": function}
                return {"tool_calls": [call]}
            case CallArguments():
                return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
            case CallEnd() | Finish():
                return {}
