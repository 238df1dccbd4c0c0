"""The messages of an Anthropic request and the blocks in them: types only."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from gateway.dialects.tagged_union import LeftOut, Refused, kind_in
from gateway.http.body import Body, Opaque, text_or_list

# Calls and results of tools that another server ran.
SERVER_CALL = ("server_tool_use", "mcp_tool_use")
SERVER_RESULT = re.compile(r"[a-z_]+_tool_result")


class TextBlock(Body):
    """Text. In instructions some blocks are notes of the client, see `blocks.py`."""

    type: Literal["text"]
    text: str


class Base64Source(Body):
    """A picture in the request. Its media type isn't believed."""

    type: Literal["base64"]
    data: str


class UrlSource(Body):
    """A picture elsewhere."""

    type: Literal["url"]
    url: str


class ImageBlock(Body):
    """An image."""

    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("~base64")] | Annotated[UrlSource, Tag("~url")] | Annotated[Refused, Tag("~other")],
        Discriminator(kind_in("base64", "url")),
    ]


class TextSource(Body):
    """A document that is plain text."""

    type: Literal["text"]
    data: str


class DocumentBlock(Body):
    """A document, with text only."""

    type: Literal["document"]
    source: Annotated[
        Annotated[TextSource, Tag("~text")] | Annotated[Refused, Tag("~other")],
        Discriminator(kind_in("text")),
    ]
    title: str | None = None


class SearchResultBlock(Body):
    """What a search found, read as text."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


class ToolReferenceBlock(Body):
    """The name of a tool, read as text."""

    type: Literal["tool_reference"]
    tool_name: str


class ThinkingBlock(Body):
    """Reasoning. The signature is not verified."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedBlock(LeftOut):
    """Reasoning that only its maker can read; it is left out."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Body):
    """A tool call of the history. The shape of its id is free."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1)]
    input: dict[str, Any] | None = None


class ServerCallBlock(ToolUseBlock):
    """A tool call that another server answered."""

    type: Literal["server_tool_use", "mcp_tool_use"]  # type: ignore[assignment]
    server_name: str | None = None


def _server_result(kind: str) -> str:
    if not SERVER_RESULT.fullmatch(kind):
        raise PydanticCustomError("kind", "this kind is not supported here")
    return kind


class ServerResultBlock(Opaque):
    """What another server's tool returned, whatever form it has."""

    type: Annotated[str, AfterValidator(_server_result)]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: Any = None
    is_error: bool | None = None


class CompactionBlock(Opaque):
    """The summary of a conversation that another server shortened; read as text."""

    type: Literal["compaction"]
    content: str | None = None


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("~text")]
    | Annotated[ImageBlock, Tag("~image")]
    | Annotated[DocumentBlock, Tag("~document")]
    | Annotated[SearchResultBlock, Tag("~search_result")]
    | Annotated[ToolReferenceBlock, Tag("~tool_reference")]
    | Annotated[Refused, Tag("~other")],
    Discriminator(kind_in("text", "image", "document", "search_result", "tool_reference")),
]
_FORM = {"custom_error_type": "content_form", "custom_error_message": "must be a string or a list of blocks"}


class ToolResultBlock(Body):
    """What a tool returned."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: (
        Annotated[
            Annotated[str, Tag("~text")] | Annotated[list[ResultBlock], Tag("~list"), Field(fail_fast=True)],
            Discriminator(text_or_list, **_FORM),
        ]
        | None
    ) = None
    is_error: bool | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("~text")]
    | Annotated[ImageBlock, Tag("~image")]
    | Annotated[DocumentBlock, Tag("~document")]
    | Annotated[SearchResultBlock, Tag("~search_result")]
    | Annotated[ToolReferenceBlock, Tag("~tool_reference")]
    | Annotated[ToolResultBlock, Tag("~tool_result")]
    | Annotated[Refused, Tag("~other")],
    Discriminator(kind_in("text", "image", "document", "search_result", "tool_reference", "tool_result")),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("~text")]
    | Annotated[ThinkingBlock, Tag("~thinking")]
    | Annotated[RedactedBlock, Tag("~redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("~tool_use")]
    | Annotated[ServerCallBlock, Tag("~server_tool_use")]
    | Annotated[ServerCallBlock, Tag("~mcp_tool_use")]
    | Annotated[CompactionBlock, Tag("~compaction")]
    | Annotated[ServerResultBlock, Tag("~other")],
    Discriminator(kind_in("text", "thinking", "redacted_thinking", "tool_use", *SERVER_CALL, "compaction")),
]


class ToolChangeBlock(LeftOut):
    """A change of the tools in mid-conversation; it has no effect."""

    type: Literal["tool_addition", "tool_removal"]


SystemBlock = Annotated[
    Annotated[TextBlock, Tag("~text")]
    | Annotated[ToolChangeBlock, Tag("~tool_addition")]
    | Annotated[ToolChangeBlock, Tag("~tool_removal")]
    | Annotated[Refused, Tag("~other")],
    Discriminator(kind_in("text", "tool_addition", "tool_removal")),
]
SystemContent = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[SystemBlock], Tag("~list"), Field(fail_fast=True)],
    Discriminator(text_or_list, **_FORM),
]


class SystemMessage(Body):
    """Instructions in mid-conversation. `developer` is another word for `system`."""

    role: Literal["system", "developer"]
    content: SystemContent


class UserMessage(Body):
    """What the user says, and what tools returned."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[UserBlock], Tag("~list"), Field(fail_fast=True)],
        Discriminator(text_or_list, **_FORM),
    ]


class AssistantMessage(Body):
    """What the model said. As the last message it is the beginning of the answer."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[AssistantBlock], Tag("~list"), Field(fail_fast=True)],
        Discriminator(text_or_list, **_FORM),
    ]


InputMessage = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]
