"""The one form of an answer that stands behind every dialect of the gateway: its events, and what they add up to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gateway.request.chat_model import Call

FinishName = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes, the logarithm of its probability, and the same of the likeliest tokens in its place.

    hidden  the text does not show it: the token that ended a raw answer, or a special one
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt with its log-probability, which the first one does not have, and the likeliest ones."""

    token_id: int
    token: bytes
    logprob: float | None = None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The prompt of a choice, before anything else of it; only where its log-probabilities were asked for."""

    choice: int
    tokens: tuple[PromptToken, ...]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of a choice's reasoning."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """More of a choice's visible text, with the tokens that it begins if log-probabilities were asked for."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallStart:
    """A tool call begins. `index` is its position in this answer, without gaps."""

    choice: int
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a tool call's arguments."""

    choice: int
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A tool call is over; incomplete when the budget cut it."""

    choice: int
    index: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of a choice. `stop` is the stop string that was met, `stop_token` the token that ended it."""

    choice: int
    reason: FinishName
    stop: str | None = None
    stop_token: int | None = None

    @property
    def matched_stop(self) -> str | int | None:
        """What ended the answer; None if the budget did, or a limit of calls."""
        return self.stop if self.stop is not None else self.stop_token


AnswerEvent = PromptTokens | Reasoning | Content | CallStart | CallArguments | CallEnd | Finish


@dataclass(slots=True)
class Usage:
    """Token counts of a request. Owned by its ActiveRequest, final once that is over."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0  # of the prompt
    completion: list[int] = field(default_factory=list)  # tokens of each choice
    reasoning: list[int] = field(default_factory=list)  # of these, reasoning
    schema_left_out: list[str] = field(default_factory=list)  # keywords of the request's schemas that nothing enforced

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(self.completion)

    @property
    def num_reasoning_tokens(self) -> int:
        """Reasoning tokens of all choices, part of the completion tokens."""
        return sum(self.reasoning)


@dataclass(slots=True)
class ChoiceAnswer:
    """A whole choice, put together from its events."""

    finish: Finish
    reasoning: str = ""
    content: str = ""
    tool_calls: list[Call] = field(default_factory=list)  # complete ones only
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the content, if asked for
    prompt: tuple[PromptToken, ...] = ()  # if its log-probabilities were asked for


def assemble(events: Sequence[AnswerEvent], num_choices: int) -> list[ChoiceAnswer]:
    """Return the choices that the events of a finished request add up to; calls that the budget cut are left out."""
    choices = [_Pieces() for _ in range(num_choices)]
    for event in events:
        choices[event.choice].add(event)
    return [pieces.answer() for pieces in choices]


class _Pieces:
    """The events of one choice on their way to an answer."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._starts: dict[int, CallStart] = {}
        self._arguments: dict[int, list[str]] = {}
        self._complete: list[int] = []
        self._prompt: tuple[PromptToken, ...] = ()
        self._finish: Finish | None = None

    def add(self, event: AnswerEvent) -> None:
        match event:
            case PromptTokens():
                self._prompt = event.tokens
            case Reasoning():
                self._reasoning.append(event.text)
            case Content():
                self._content.append(event.text)
                self._logprobs += event.logprobs
            case CallStart():
                self._starts[event.index] = event
                self._arguments[event.index] = []
            case CallArguments():
                self._arguments[event.index].append(event.text)
            case CallEnd():
                if event.complete:
                    self._complete.append(event.index)
            case Finish():
                self._finish = event

    def answer(self) -> ChoiceAnswer:
        assert self._finish is not None, "a request ends only when each of its choices has finished"
        calls = [
            Call(self._starts[index].id, self._starts[index].name, "".join(self._arguments[index]))
            for index in self._complete
        ]
        return ChoiceAnswer(
            self._finish,
            "".join(self._reasoning),
            "".join(self._content),
            calls,
            self._logprobs,
            self._prompt,
        )
