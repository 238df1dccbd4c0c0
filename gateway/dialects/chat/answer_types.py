"""Answers of chat completions as types: they check the builders and are the schemas of the OpenAPI document."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from gateway.dialects.left_out import Noted
from gateway.request.answer_model import FinishName

Natural = Annotated[int, Field(ge=0)]


class PromptTokensDetails(TypedDict):
    """Of the tokens of a prompt, those that the prefix cache had."""

    cached_tokens: Natural


class CompletionTokensDetails(TypedDict):
    """Of the tokens of an answer, those of its reasoning."""

    reasoning_tokens: Natural


class CompletionUsage(TypedDict):
    """Token counts; cached and reasoning tokens in both places where clients look."""

    prompt_tokens: Natural
    completion_tokens: Natural
    total_tokens: Natural
    cached_tokens: Natural
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(TypedDict):
    """A token with its log-probability: as text and as bytes, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    """A token of the content, and the likeliest tokens in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(TypedDict):
    """The tokens of a choice's content."""

    content: list[ContentLogprob]
    refusal: None


class CalledFunction(TypedDict):
    """A function's name and the JSON text of its arguments."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call that the client shall make."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(TypedDict):
    """The whole message. Reasoning stands there under both of its names, or under none."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: NotRequired[str]
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One answer. `matched_stop`: the stop string or the id of the stop token that ended it."""

    index: Natural
    finish_reason: FinishName
    matched_stop: str | int | None
    logprobs: ChoiceLogprobs | None
    message: ChatMessage


class PromptLogprob(TypedDict):
    """A token in the place of one of the prompt; `rank` is null where it is not among the alternatives."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each token of the prompt, by token id: itself and its alternatives; null for the first."""


class AnswerHead(TypedDict):
    """What the answer and every chunk of a stream begin with."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: Natural
    model: str
    system_fingerprint: str


class ChatCompletion(AnswerHead, Noted):
    """The answer that is not streamed."""

    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatCompletionWithPrompt(ChatCompletion):
    """The same with the log-probabilities of the prompt."""

    prompt_logprobs: PromptLogprobs


class CalledFunctionDelta(TypedDict):
    """The name, once, or more of the arguments."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A call begins, with id, type and name, or goes on."""

    index: Natural
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunctionDelta


class Delta(TypedDict, total=False):
    """More of a message. Where reasoning is shown its field is in every delta, null in those that have none."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str | None
    reasoning: str | None
    tool_calls: list[ToolCallDelta]


class ChunkChoice(TypedDict):
    """More of one answer; the last has the finish and the usage."""

    index: Natural
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: FinishName | None
    matched_stop: NotRequired[str | int | None]
    usage: NotRequired[CompletionUsage]


class ChatCompletionChunk(AnswerHead, Noted):
    """One event of a stream."""

    choices: list[ChunkChoice]


class ChunkWithUsage(ChatCompletionChunk):
    """The same where the usage was asked for: null, unless it is the last or every chunk has it."""

    usage: CompletionUsage | None
