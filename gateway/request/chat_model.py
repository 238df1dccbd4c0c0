"""The one form of a request and of its answer that stands behind every dialect of the gateway."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from protos.tokenizer_pb2 import RenderResponse


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

    @property
    def num_chars(self) -> int:
        """Return the characters of its texts."""
        shown = sum(len(part.text) for part in self.content if isinstance(part, Text))
        return shown + len(self.reasoning or "") + sum(len(call.arguments) for call in self.tool_calls)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    declaration  what the chat template shows of it: `{"type": "function", "function": {"name": ...}}`; beside the name
                 may stand `description`, `parameters` (a JSON schema) and `strict`
    """

    declaration: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name by which the model calls it."""
        return str(self.declaration["function"]["name"])

    @property
    def parameters(self) -> Mapping[str, Any] | None:
        """The schema of its arguments; None: it takes none."""
        parameters: Mapping[str, Any] | None = self.declaration["function"].get("parameters")
        return parameters

    @property
    def is_loose(self) -> bool:
        """Whether any arguments will do."""
        return self.declaration["function"].get("strict") is False

    @property
    def properties(self) -> list[str]:
        """The names of its arguments."""
        properties = (self.parameters or {}).get("properties")
        return list(properties) if isinstance(properties, dict) else []


class PromptMaker(Protocol):
    """What turns messages or texts into the tokens of a prompt."""

    async def render(self, conversation: "Conversation") -> RenderResponse:
        """Return the prompt that the chat template makes of a conversation."""

    async def encode(self, prompts: "RawPrompts") -> list[RenderResponse]:
        """Return prompts as they are."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt that the chat template renders."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool = True
    preserve_thinking: bool = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    field: str = "messages"  # what the client calls the messages
    is_raw: ClassVar[bool] = False

    @property
    def media(self) -> tuple[Media, ...]:
        """All images and videos, in order."""
        return tuple(part for message in self.messages for part in message.content if isinstance(part, Media))

    @property
    def num_chars(self) -> int:
        """Return the characters of all texts that are not in tools."""
        return sum(message.num_chars for message in self.messages)

    async def prompts(self, maker: PromptMaker) -> list[RenderResponse]:
        """Return the only prompt."""
        return [await maker.render(self)]


@dataclass(frozen=True, slots=True)
class RawPrompts:
    """Prompts without a chat: text, in which markers become special tokens, or token ids. None is empty."""

    texts: tuple[str | tuple[int, ...], ...]
    tools: ClassVar[tuple[Tool, ...]] = ()
    media: ClassVar[tuple[Media, ...]] = ()
    field: ClassVar[str] = "prompt"
    is_raw: ClassVar[bool] = True

    @property
    def num_chars(self) -> int:
        """Return the characters of all texts."""
        return sum(len(text) for text in self.texts if isinstance(text, str))

    async def prompts(self, maker: PromptMaker) -> list[RenderResponse]:
        """Return a prompt for each text."""
        return await maker.encode(self)


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
    num_prompt_logprobs: int | None = None  # the same for each token of the prompt
    max_thinking_tokens: int | None = None
    allowed_token_ids: tuple[int, ...] = ()  # no other comes; empty: all may come
    bad_words: tuple[str, ...] = ()  # texts that the answer does not have
    priority: int = 0  # carried to the engines


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
    """The form of the visible text: a regular expression, a Lark grammar, structural tags, or one of some texts."""

    kind: Literal["regex", "grammar", "choice", "structural_tag"]
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
