"""Answers of a plain completion: one JSON object, or the pieces of a stream."""

import codecs
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.dialects.chat.answer import NEVER_LOGPROB, usage_of
from gateway.http.errors import openai_error
from gateway.http.sse import DONE, KEEP_ALIVE, data_event
from gateway.request.chat_model import ChoiceAnswer, Content, Event, Finish, TokenLogprob, Usage
from services.runtime.errors import MoonshardError


@dataclass(frozen=True, slots=True)
class CompletionHead:
    """What every piece of an answer repeats."""

    model: str  # as requested
    fingerprint: str
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> dict[str, Any]:
        """The beginning of an answer object."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


class LogprobWriter:
    """Log-probabilities in the form of this dialect. Remembers how much text of its choice came before."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_chars = 0  # of the text so far, but for a character that is not complete

    def write(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """These tokens, which follow those of before; offsets count characters of the choice's text."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._num_chars + self._breaks_off(token.token))
            self._num_chars += len(self._decoder.decode(token.token))
        return {
            "tokens": [_text_of(token.token) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {_text_of(other): _finite(logprob) for other, logprob in (*token.top, (token.token, token.logprob))}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _breaks_off(self, token: bytes) -> bool:
        """Whether a character was begun that this token does not go on with; a sign in its place is shown."""
        begun, _ = self._decoder.getstate()
        return bool(begun) and token[:1] != b"" and not 0x80 <= token[0] < 0xC0


def whole_completion(
    head: CompletionHead, choices: Sequence[ChoiceAnswer], usage: Usage, *, echoes: Sequence[str], show_logprobs: bool
) -> dict[str, Any]:
    """The body of an answer that is not streamed. `echoes`: what stands before each choice's text."""
    return {
        **head.fields(),
        "choices": [
            {
                "index": index,
                "text": echoes[index] + choice.content,
                "logprobs": LogprobWriter().write(choice.logprobs) if show_logprobs else None,
                "finish_reason": choice.finish,
            }
            for index, choice in enumerate(choices)
        ],
        "usage": usage_of(usage),
    }


class PieceWriter:
    """Turns events into the pieces of one stream. Remembers which choices have begun."""

    def __init__(
        self,
        head: CompletionHead,
        usage: Usage,
        *,
        echoes: Sequence[str],
        include_usage: bool,
        continuous_usage: bool,
    ) -> None:
        self._head = head.fields()
        self._usage = usage
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._echoes = dict(enumerate(echoes))  # of the choices that have not begun
        self._logs = [LogprobWriter() for _ in echoes]

    def write(self, events: Sequence[Event]) -> bytes:
        """The pieces of these events, each as one server-sent event."""
        return b"".join(piece for event in events for piece in self._pieces_of(event))

    def keep_alive(self) -> bytes:
        """A comment."""
        return KEEP_ALIVE

    def last(self) -> bytes:
        """The usage, if it was asked for, and the mark of the end."""
        if not self._include_usage:
            return DONE
        return data_event(orjson.dumps({**self._head, "choices": [], "usage": usage_of(self._usage)})) + DONE

    def fail(self, error: MoonshardError) -> bytes:
        """The error, and the mark of the end."""
        return data_event(orjson.dumps(openai_error(error))) + DONE

    def _pieces_of(self, event: Event) -> Iterator[bytes]:
        if echo := self._echoes.pop(event.choice, ""):
            yield self._piece(event.choice, text=echo)
        match event:
            case Content():
                logprobs = self._logs[event.choice].write(event.logprobs) if event.logprobs else None
                yield self._piece(event.choice, text=event.text, logprobs=logprobs)
            case Finish():
                yield self._piece(event.choice, finish_reason=event.reason)

    def _piece(
        self, index: int, *, text: str = "", logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        piece = {**self._head, "choices": [choice]}
        if self._continuous_usage:
            piece["usage"] = usage_of(self._usage)
        elif self._include_usage:
            piece["usage"] = None
        return data_event(orjson.dumps(piece))


def _text_of(token: bytes) -> str:
    return token.decode(errors="replace")


def _finite(logprob: float) -> float:
    return max(logprob, NEVER_LOGPROB)
