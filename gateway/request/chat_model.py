"""The one form of a request and of its answer that stands behind every dialect of the gateway."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

FinishName = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Media:
    """An image or a video in a message, where it came from and which field named it."""

    kind: Literal["image", "video"]
    url: str
    field: str


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of the history. `arguments` is text, normally of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation. `reasoning` None means absent, which differs from empty."""

    role: Literal["system", "user", "assistant", "tool"]
    content: tuple[Text | Media, ...] = ()
    name: str = ""
    reasoning: str | None = None
    tool_calls: tuple[Call, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the chat template renders."""

    messages: tuple[Message, ...]
    tools_json: str = ""  # JSON list as the client sent it; empty without tools
    thinking: bool = True
    preserve_thinking: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False


@dataclass(frozen=True, slots=True)
class RawPrompts:
    """Prompts without a chat: text, in which markers become special tokens, or token ids. None is empty."""

    prompts: tuple[str | tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. None means that the server decides."""

    temperature: float
    top_p: float
    seed: int | None = None  # any integer; reduced modulo 2^64
    max_new_tokens: int | None = None
    budget_field: str = "max_tokens"  # what the client calls max_new_tokens
    min_new_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # beside those of the model
    ignore_eos: bool = False
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)
    num_top_logprobs: int | None = None  # alternatives to each token, 0 to 20; None: no log-probabilities


@dataclass(frozen=True, slots=True)
class Output:
    """How the tokens become an answer."""

    drop_tool_calls: bool
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    max_tool_calls: int = 0  # 0: no limit
    keep_special: bool = False  # after raw prompts: special tokens appear as their text


@dataclass(frozen=True, slots=True)
class ForcedCall:
    """The answer must call a tool: the one of this name, or any if the name is empty. `field` asked for it."""

    name: str
    field: str


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """The visible text must be JSON: by this schema, or any object if it is empty. `field` asked for it.

    loose  what of the schema cannot be enforced is left out instead of refused
    """

    schema_json: str
    field: str
    loose: bool = False


@dataclass(frozen=True, slots=True)
class FormedAnswer:
    """The visible text must match a regular expression or a Lark grammar, or be one of some texts."""

    kind: Literal["regex", "grammar", "choice"]
    texts: tuple[str, ...]  # one, but for a choice
    field: str


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the pipeline sees it, whatever dialect it came through."""

    conversation: Conversation | RawPrompts
    sampling: Sampling
    output: Output
    num_choices: int = 1  # of each prompt
    forced_call: ForcedCall | None = None
    json_answer: JsonAnswer | FormedAnswer | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes, the logarithm of its probability, and the same of the likeliest tokens in its place."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


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
    """The last event of a choice. `stop` is the stop string that was met."""

    choice: int
    reason: FinishName
    stop: str | None = None


Event = Reasoning | Content | CallStart | CallArguments | CallEnd | Finish


@dataclass(slots=True)
class Usage:
    """Token counts of a request. Owned by its run, final once the run is over."""

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

    reasoning: str = ""
    content: str = ""
    tool_calls: list[Call] = field(default_factory=list)  # complete ones only
    finish: FinishName = "stop"
    stop: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)  # of the content, if asked for


def assemble(events: Sequence[Event], num_choices: int) -> list[ChoiceAnswer]:
    """The choices that a finished run's events add up to; calls that the budget cut are left out."""
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
        self._finish: Finish | None = None

    def add(self, event: Event) -> None:
        match event:
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
        assert self._finish is not None, "a run ends only when each of its choices has finished"
        calls = [
            Call(self._starts[index].id, self._starts[index].name, "".join(self._arguments[index]))
            for index in self._complete
        ]
        return ChoiceAnswer(
            "".join(self._reasoning),
            "".join(self._content),
            calls,
            self._finish.reason,
            self._finish.stop,
            self._logprobs,
        )
