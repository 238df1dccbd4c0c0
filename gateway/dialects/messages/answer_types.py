"""Answers of Anthropic's dialect as types: they check the builders and are the schemas of the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from gateway.dialects.left_out import Noted

Natural = Annotated[int, Field(ge=0)]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class OutputTokensDetails(TypedDict):
    """Of the tokens of an answer, those of its thinking."""

    thinking_tokens: Natural


class MessageUsage(TypedDict):
    """Token counts; the cached tokens are no part of the input tokens."""

    input_tokens: Natural
    cache_read_input_tokens: Natural
    cache_creation_input_tokens: Natural
    output_tokens: Natural
    output_tokens_details: OutputTokensDetails


class Thinking(TypedDict):
    """Reasoning, empty if only its signature is shown."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class TextContent(TypedDict):
    """Visible text."""

    type: Literal["text"]
    text: str


class ToolUse(TypedDict):
    """A call that the client shall make."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


Block = Thinking | TextContent | ToolUse


class Stop(TypedDict):
    """Why a message ended, and the stop sequence if one did it."""

    stop_reason: StopReason | None
    stop_sequence: str | None


class AssistantMessage(Stop, Noted):
    """The answer; in a stream first without an end."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Block]
    usage: MessageUsage


class TokenCount(TypedDict):
    """The tokens of a prompt."""

    input_tokens: Natural
