"""What POST /v1/messages and POST /v1/messages/count_tokens accept, types and ranges only."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from gateway.dialects.chat.schema import TOOL_NAME
from gateway.dialects.messages.block_schema import InputMessage, SystemContent
from gateway.dialects.sampling import StopString
from gateway.http.body import Body, Int, Opaque, PositiveInt

SERVER_TOOL = re.compile(r"[a-z0-9_]+_\d{8}|mcp_toolset")
MIN_BUDGET_TOKENS = 1024


class CustomTool(Body):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


def _server_tool(kind: str) -> str:
    if not SERVER_TOOL.fullmatch(kind):
        raise PydanticCustomError("kind", "must be custom, or the name of a server tool")
    return kind


class ServerTool(Opaque):
    """A tool that only Anthropic's servers have; it is left out, with a warning."""

    type: Annotated[str, AfterValidator(_server_tool)]


def _custom_or_server(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return "~custom" if kind in (None, "custom") else "~server"


Tool = Annotated[
    Annotated[CustomTool, Tag("~custom")] | Annotated[ServerTool, Tag("~server")],
    Discriminator(_custom_or_server),
]


class AutoChoice(Body):
    """The model decides, or must call any tool."""

    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class ToolChoice(Body):
    """A call of one tool is demanded."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoChoice(Body):
    """No tool may be called."""

    type: Literal["none"]


class Thinking(Body):
    """Whether to reason. `display` omitted: the answer does not show it."""

    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: Annotated[Int, Field(ge=MIN_BUDGET_TOKENS)] | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None


class ContextEdit(Opaque):
    """How the history is shortened. Only `clear_thinking_20251015` with `keep: all` means something here."""

    type: str | None = None
    keep: Any = None


class ContextManagement(Body):
    """Edits of the history before it becomes the prompt."""

    edits: list[ContextEdit] | None = None


class JsonSchemaFormat(Body):
    """JSON after a schema. `schema` is its field name on the wire."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of the answer."""

    format: JsonSchemaFormat | None = None


class CountTokensRequest(Body):
    """What becomes the prompt."""

    model: str
    messages: Annotated[list[InputMessage], Field(min_length=1, fail_fast=True)]
    system: SystemContent | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[AutoChoice | ToolChoice | NoChoice, Field(discriminator="type")] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonSchemaFormat | None = None
    context_management: ContextManagement | None = None


class MessagesRequest(CountTokensRequest):
    """A request for one answer."""

    max_tokens: PositiveInt
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1, lt=2**31)] | None = None
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
