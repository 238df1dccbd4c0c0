"""Answers of the Responses dialect as types: they check the builders and are the schemas of the OpenAPI document."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from gateway.dialects.chat.answer_types import ContentLogprob
from gateway.dialects.left_out import Noted

Natural = Annotated[int, Field(ge=0)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ReasoningText(TypedDict):
    """Reasoning as it is."""

    type: Literal["reasoning_text"]
    text: str


class SummaryText(TypedDict):
    """Reasoning where a summary was asked for, which is all of it."""

    type: Literal["summary_text"]
    text: str


class OutputText(TypedDict):
    """Visible text."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ContentLogprob]


class ReasoningItem(TypedDict):
    """Reasoning. `encrypted_content` is packed for clients that send only that back."""

    id: str
    type: Literal["reasoning"]
    summary: list[SummaryText]
    content: list[ReasoningText]
    encrypted_content: NotRequired[str]


class MessageItem(TypedDict):
    """A message."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class FunctionCallItem(TypedDict):
    """A call that the client shall make."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    namespace: NotRequired[str]
    arguments: str
    status: ItemStatus


class CustomCallItem(TypedDict):
    """The same of a tool that takes a text."""

    id: str
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    namespace: NotRequired[str]
    input: str


OutputItem = ReasoningItem | MessageItem | FunctionCallItem | CustomCallItem


class InputTokensDetails(TypedDict):
    """Of the tokens of a prompt, those that the prefix cache had."""

    cached_tokens: Natural
    cache_write_tokens: Natural


class OutputTokensDetails(TypedDict):
    """Of the tokens of an answer, those of its reasoning."""

    reasoning_tokens: Natural


class ResponseUsage(TypedDict):
    """Token counts; the cached tokens are part of the input tokens."""

    input_tokens: Natural
    input_tokens_details: InputTokensDetails
    output_tokens: Natural
    output_tokens_details: OutputTokensDetails
    total_tokens: Natural


class IncompleteDetails(TypedDict):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ResponseError(TypedDict):
    """Why a response failed."""

    code: str
    message: str


class Repeated(TypedDict):
    """What a response repeats of its request; clients demand each field, null or not."""

    model: str
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    parallel_tool_calls: bool
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: Natural
    text: dict[str, Any]
    reasoning: dict[str, str | None]
    metadata: dict[str, str]
    previous_response_id: None
    truncation: Literal["disabled"]
    store: Literal[False]
    background: Literal[False]
    service_tier: Literal["default"]
    safety_identifier: str | None
    prompt_cache_key: str | None


class Response(Repeated, Noted):
    """One response: under way, ended, or failed."""

    id: str
    object: Literal["response"]
    created_at: Natural
    completed_at: Natural | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    output: list[OutputItem]
    usage: ResponseUsage | None
