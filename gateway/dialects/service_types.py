"""Answers of the small endpoints as types: they check the builders and are the schemas of the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from gateway.request.files import File

Natural = Annotated[int, Field(ge=0)]


class Model(TypedDict):
    """The model: one union of fields for the clients of OpenAI, Anthropic, Kimi and vLLM."""

    id: str
    object: Literal["model"]
    type: Literal["model"]
    created: Natural
    created_at: str
    display_name: str
    lifecycle: Literal["active"]
    owned_by: str
    root: str
    parent: None
    permission: list[Any]
    capabilities: None
    max_input_tokens: Natural
    max_tokens: Natural
    max_model_len: Natural
    context_length: Natural
    supports_image_in: bool
    supports_video_in: bool
    supports_reasoning: bool
    supports_thinking_type: Literal["both"]


class ModelList(TypedDict):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]
    has_more: bool
    first_id: str
    last_id: str


class TokenList(TypedDict):
    """The tokens of a text or of a conversation."""

    count: Natural
    max_model_len: Natural
    tokens: list[Natural]
    token_strs: list[str] | None


class PromptText(TypedDict):
    """The text of tokens."""

    prompt: str


class TokenTotal(TypedDict):
    """A number of tokens."""

    total_tokens: Natural


class EstimatedTokens(TypedDict):
    """What a request would count as its prompt."""

    data: TokenTotal


class FileList(TypedDict):
    """The files of a key."""

    object: Literal["list"]
    data: list[File]
    has_more: bool


class DeletedFile(TypedDict):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class Version(TypedDict):
    """The version of this build."""

    version: str


class Health(TypedDict):
    """`ok`, or `holding` while requests wait for roles that wake."""

    status: Literal["ok", "holding"]
