"""Answers of plain completions as types: they check the builders and are the schemas of the OpenAPI document."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from gateway.dialects.chat.answer_types import CompletionUsage, PromptLogprobs
from gateway.request.answer_model import FinishName

Natural = Annotated[int, Field(ge=0)]


class Logprobs(TypedDict):
    """The tokens of a choice, one entry of each list for each; the first of an echoed prompt has only nulls.

    text_offset  in characters of the choice's text
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Natural]


class CompletionChoice(TypedDict):
    """One continuation, or a piece of it. `matched_stop`: the stop string or the id of the token that ended it."""

    index: Natural
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishName | None
    matched_stop: NotRequired[str | int | None]
    prompt_logprobs: NotRequired[PromptLogprobs]


class CompletionHead(TypedDict):
    """What the answer and every piece of a stream begin with."""

    id: str
    object: Literal["text_completion"]
    created: Natural
    model: str
    system_fingerprint: str


class TextCompletion(CompletionHead):
    """The answer that is not streamed."""

    choices: list[CompletionChoice]
    usage: CompletionUsage


class TextCompletionPiece(CompletionHead):
    """One event of a stream."""

    choices: list[CompletionChoice]


class PieceWithUsage(TextCompletionPiece):
    """The same where the usage was asked for: null, unless it is the last or every piece has it."""

    usage: CompletionUsage | None
