"""Answers of the Anthropic dialect: one message, or the events of a stream."""

import secrets
import string
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from gateway.dialects.left_out import notes_of
from gateway.dialects.messages.answer_types import AssistantMessage, Block, MessageUsage, Stop, StopReason
from gateway.dialects.opaque_reasoning import seal, signature
from gateway.http.errors import anthropic_error
from gateway.http.sse import KEEP_ALIVE, named_event
from gateway.request.answer_model import (
    AnswerEvent,
    CallArguments,
    CallEnd,
    CallStart,
    ChoiceAnswer,
    Content,
    Finish,
    Reasoning,
    Usage,
)
from services.runtime.errors import MoonshardError

ALPHABET = string.ascii_letters + string.digits
ID_CHARS = 24
NOT_ENDED: Stop = {"stop_reason": None, "stop_sequence": None}


def new_id(kind: str) -> str:
    """Return a new id: `msg_` or `toolu_` and random characters."""
    return f"{kind}_{''.join(secrets.choice(ALPHABET) for _ in range(ID_CHARS))}"


def usage_of(usage: Usage) -> MessageUsage:
    """Return the counts; here the cached tokens are no part of the input tokens."""
    return {
        "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
        "cache_read_input_tokens": usage.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.num_completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.num_reasoning_tokens},
    }


def message_of(model: str, content: list[Block], usage: Usage, stop: Stop) -> AssistantMessage:
    """Return a message; `stop` says nothing as long as it has not ended."""
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **stop,
        "usage": usage_of(usage),
        **notes_of(usage),
    }


def whole_message(model: str, choice: ChoiceAnswer, usage: Usage, *, show_thinking: bool) -> AssistantMessage:
    """Return the body of an answer that is not streamed."""
    content: list[Block] = []
    if choice.reasoning:
        shown = choice.reasoning if show_thinking else ""
        signed = _signature(choice.reasoning, show_thinking=show_thinking)
        content.append({"type": "thinking", "thinking": shown, "signature": signed})
    if choice.content:
        content.append({"type": "text", "text": choice.content})
    for call in choice.tool_calls:
        content.append(
            {"type": "tool_use", "id": new_id("toolu"), "name": call.name, "input": _input_of(call.arguments)}
        )
    return message_of(model, content or [{"type": "text", "text": ""}], usage, _stop_of(choice.finish))


def _signature(reasoning: str, *, show_thinking: bool) -> str:
    """Return a signature; it carries reasoning that is not shown, for the next turn."""
    return signature() if show_thinking else seal(reasoning)


def _input_of(arguments: str) -> dict[str, Any]:
    """Return the arguments as an object, which they are unless the model broke its own form."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _stop_of(finish: Finish) -> Stop:
    match finish.reason:
        case "length":
            return {"stop_reason": "max_tokens", "stop_sequence": None}
        case "tool_calls":
            return {"stop_reason": "tool_use", "stop_sequence": None}
        case _:
            reason: StopReason = "end_turn" if finish.stop is None else "stop_sequence"
            return {"stop_reason": reason, "stop_sequence": finish.stop}


class BlockWriter:
    """Turns the events of one answer into those of the stream. One block is open at a time.

    The message begins with the first event, because only then the number of cached tokens is known.
    """

    def __init__(self, model: str, usage: Usage, *, show_thinking: bool) -> None:
        self._model = model
        self._usage = usage
        self._show_thinking = show_thinking
        self._begun = False
        self._num_blocks = 0
        self._open: str | None = None  # the type of the open block
        self._thoughts: list[str] = []  # of the open block

    def write(self, events: Sequence[AnswerEvent]) -> bytes:
        """Write these events, in order."""
        return b"".join(piece for event in events for piece in self._pieces_of(event))

    def keep_alive(self) -> bytes:
        """Write a ping; before the message has begun, when clients may not expect one, a comment."""
        return named_event("ping", b'{"type":"ping"}') if self._begun else KEEP_ALIVE

    def last(self) -> bytes:
        """Write nothing: `message_stop` was the end."""
        return b""

    def fail(self, error: MoonshardError) -> bytes:
        """Write the error as the last event."""
        return named_event("error", orjson.dumps(anthropic_error(error)))

    def _pieces_of(self, event: AnswerEvent) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield _event("message_start", message=message_of(self._model, [], self._usage, NOT_ENDED))
            yield self.keep_alive()
        match event:
            case Reasoning():
                yield from self._enter("thinking", thinking="", signature="")
                self._thoughts.append(event.text)
                if self._show_thinking:
                    yield self._delta("thinking_delta", thinking=event.text)
            case Content():
                yield from self._enter("text", text="")
                yield self._delta("text_delta", text=event.text)
            case CallStart():
                yield from self._leave()
                yield from self._enter("tool_use", id=new_id("toolu"), name=event.name, input={})
            case CallArguments():
                yield self._delta("input_json_delta", partial_json=event.text)
            case CallEnd():
                yield from self._leave()
            case Finish():
                if self._num_blocks == 0:
                    yield from self._enter("text", text="")
                yield from self._leave()
                yield _event(
                    "message_delta", delta=_stop_of(event), usage=usage_of(self._usage), **notes_of(self._usage)
                )
                yield _event("message_stop")

    def _enter(self, kind: str, **fields: Any) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._leave()
        self._open = kind
        yield _event("content_block_start", index=self._num_blocks, content_block={"type": kind, **fields})
        self._num_blocks += 1

    def _leave(self) -> Iterator[bytes]:
        if self._open == "thinking":
            signed = _signature("".join(self._thoughts), show_thinking=self._show_thinking)
            self._thoughts.clear()
            yield self._delta("signature_delta", signature=signed)
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._num_blocks - 1)

    def _delta(self, kind: str, **fields: str) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta={"type": kind, **fields})


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, orjson.dumps({"type": kind, **fields}))
