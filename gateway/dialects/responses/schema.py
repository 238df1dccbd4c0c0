"""What POST /v1/responses accepts, types and ranges only."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.dialects.chat.schema import TOOL_NAME
from gateway.dialects.responses.item_schema import Item
from gateway.http.body import Body, Int, PositiveInt, text_or_list, text_or_object


class FunctionTool(Body):
    """A function that the model may call. Without `parameters` it takes no arguments."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class OtherTool(Body):
    """A tool that only other servers have; it is left out."""

    type: str


def _function_or_other(value: object) -> str:
    return "~function" if isinstance(value, dict) and value.get("type") == "function" else "~other"


Tool = Annotated[
    Annotated[FunctionTool, Tag("~function")] | Annotated[OtherTool, Tag("~other")],
    Discriminator(_function_or_other),
]


class NamedChoice(Body):
    """A call of one named function is demanded."""

    type: Literal["function"]
    name: str


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~text")] | Annotated[NamedChoice, Tag("~object")],
    Discriminator(
        text_or_object,
        custom_error_type="tool_choice_form",
        custom_error_message="must be none, auto, required, or an object that names a function",
    ),
]


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON after a schema. `schema` is its field name on the wire."""

    type: Literal["json_schema"]
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextConfig(Body):
    """The form of the visible text."""

    format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = None


class ReasoningConfig(Body):
    """Whether to reason: an effort of `none` means not to."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(Body):
    """A request for one response. Fields that are not listed here have no effect."""

    model: str
    input: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[Item], Tag("~list")],
        Discriminator(
            text_or_list,
            custom_error_type="input_form",
            custom_error_message="must be a string or a list of items",
        ),
    ]
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: PositiveInt | None = None
    max_tool_calls: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: list[str] | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
