"""Answers of a plain completion: one JSON object, or the pieces of a stream."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import orjson

from gateway.dialects.chat.answer import usage_of
from gateway.dialects.chat.answer_types import CompletionUsage
from gateway.dialects.completions.answer_types import (
    CompletionChoice,
    CompletionHead,
    Logprobs,
    PieceWithUsage,
    TextCompletion,
    TextCompletionPiece,
)
from gateway.dialects.completions.logprobs import LogprobWriter, joined
from gateway.dialects.logprobs import prompt_logprobs
from gateway.http.errors import openai_error
from gateway.http.sse import DONE, KEEP_ALIVE, data_event
from gateway.request.answer_model import AnswerEvent, ChoiceAnswer, Content, Finish, PromptTokens, Usage
from services.runtime.errors import MoonshardError


@dataclass(frozen=True, slots=True)
class CompletionStyle:
    """How a request wants its answer, and what every part of the answer repeats.

    model        as requested
    echoes       text that stands before each choice's own
    echoes_only  there is nothing behind it, whatever the engine computed
    """

    model: str
    fingerprint: str
    echoes: Sequence[str]
    echoes_only: bool
    echoes_logprobs: bool
    show_logprobs: bool
    show_prompt_logprobs: bool
    include_usage: bool
    continuous_usage: bool
    id: str = field(default_factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self) -> CompletionHead:
        """Return the beginning of an answer object."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def usage(self, usage: Usage) -> CompletionUsage:
        """Return the counts; tokens that are not shown count as none."""
        return usage_of(replace(usage, completion=[]) if self.echoes_only else usage)

    def shown(self, events: Sequence[AnswerEvent]) -> Iterator[AnswerEvent]:
        """Return the events that are shown: without an answer, none of its text, and the end of a budget."""
        for event in events:
            match event:
                case Content() if self.echoes_only:
                    continue
                case Finish() if self.echoes_only:
                    yield Finish(event.choice, "length")
                case _:
                    yield event


def whole_completion(style: CompletionStyle, choices: Sequence[ChoiceAnswer], usage: Usage) -> TextCompletion:
    """Return the body of an answer that is not streamed."""
    return {
        **style.head(),
        "choices": [_choice_of(index, choice, style) for index, choice in enumerate(choices)],
        "usage": style.usage(usage),
    }


def _choice_of(index: int, answer: ChoiceAnswer, style: CompletionStyle) -> CompletionChoice:
    choice: CompletionChoice = {
        "index": index,
        "text": style.echoes[index] + answer.content,
        "logprobs": joined(_logprobs_of(answer, style)) if style.show_logprobs else None,
        "finish_reason": answer.finish.reason,
        "matched_stop": answer.finish.matched_stop,
    }
    if style.show_prompt_logprobs:
        choice["prompt_logprobs"] = prompt_logprobs(answer.prompt)
    return choice


def _logprobs_of(answer: ChoiceAnswer, style: CompletionStyle) -> Iterator[Logprobs]:
    writer = LogprobWriter()
    if style.echoes_logprobs:
        yield writer.echo(answer.prompt)
    yield writer.write(answer.logprobs)


class PieceWriter:
    """Turns events into the pieces of one stream. Remembers which choices have begun."""

    def __init__(self, style: CompletionStyle, usage: Usage) -> None:
        self._head = style.head()
        self._style = style
        self._usage = usage
        self._echoes = dict(enumerate(style.echoes))  # of the choices that have not begun
        self._logs = [LogprobWriter() for _ in style.echoes]

    def write(self, events: Sequence[AnswerEvent]) -> bytes:
        """Write the pieces of these events, each as one server-sent event."""
        return b"".join(piece for event in self._style.shown(events) for piece in self._pieces_of(event))

    def keep_alive(self) -> bytes:
        """Write a comment."""
        return KEEP_ALIVE

    def last(self) -> bytes:
        """Write the usage, if it was asked for, and the mark of the end."""
        if not self._style.include_usage:
            return DONE
        piece: PieceWithUsage = {**self._head, "choices": [], "usage": self._style.usage(self._usage)}
        return data_event(orjson.dumps(piece)) + DONE

    def fail(self, error: MoonshardError) -> bytes:
        """Write the error, and the mark of the end."""
        return data_event(orjson.dumps(openai_error(error))) + DONE

    def _pieces_of(self, event: AnswerEvent) -> Iterator[bytes]:
        log = self._logs[event.choice]
        echo = self._echoes.pop(event.choice, "")
        shows = isinstance(event, PromptTokens) and self._style.echoes_logprobs
        if echo or shows:
            logprobs = log.echo(event.tokens) if isinstance(event, PromptTokens) and shows else None
            yield self._piece(event.choice, text=echo, logprobs=logprobs)
        match event:
            case Content():
                logprobs = log.write(event.logprobs) if event.logprobs else None
                yield self._piece(event.choice, text=event.text, logprobs=logprobs)
            case Finish():
                yield self._piece(event.choice, finish=event)

    def _piece(
        self, index: int, *, text: str = "", logprobs: Logprobs | None = None, finish: Finish | None = None
    ) -> bytes:
        choice: CompletionChoice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if finish is None else finish.reason,
        }
        if finish is not None:
            choice["matched_stop"] = finish.matched_stop
        piece: TextCompletionPiece = {**self._head, "choices": [choice]}
        if self._style.continuous_usage or self._style.include_usage:
            usage = self._style.usage(self._usage) if self._style.continuous_usage else None
            with_usage: PieceWithUsage = {**piece, "usage": usage}
            return data_event(orjson.dumps(with_usage))
        return data_event(orjson.dumps(piece))
