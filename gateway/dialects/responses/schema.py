"""What POST /v1/responses accepts, types and ranges only."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.dialects.chat.schema import TOOL_NAME, Effort
from gateway.dialects.responses.item_schema import Item
from gateway.dialects.tagged_union import kind_in
from gateway.http.body import Body, Int, NaturalInt, Opaque, PositiveInt, text_or_list, text_or_object


class FunctionTool(Body):
    """A function that the model may call. Without `parameters` it takes no arguments."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextInput(Opaque):
    """Any text."""

    type: Literal["text"]


class GrammarInput(Opaque):
    """A text of a grammar. A regular expression is enforced; a Lark grammar is only shown to the model."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(Body):
    """A tool that takes a text instead of arguments."""

    type: Literal["custom"]
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = None

    @property
    def grammar(self) -> GrammarInput | None:
        """The form of the text, if it has one."""
        return self.format if isinstance(self.format, GrammarInput) else None


class NamespaceTool(Body):
    """Tools with a name in common: the model calls them `NAMESPACE.NAME`."""

    type: Literal["namespace"]
    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]]


class OtherTool(Opaque):
    """A tool that only other servers have; it is left out, with a warning."""

    type: str


Tool = Annotated[
    Annotated[FunctionTool, Tag("~function")]
    | Annotated[CustomTool, Tag("~custom")]
    | Annotated[NamespaceTool, Tag("~namespace")]
    | Annotated[OtherTool, Tag("~other")],
    Discriminator(kind_in("function", "custom", "namespace")),
]


class NamedChoice(Body):
    """A call of one named tool is demanded."""

    type: Literal["function", "custom"]
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
    """Any JSON object, or one after a schema. `schema` is its field name on the wire."""

    type: Literal["json_object"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


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
    """Whether to reason, at most how much, and whether the answer shows it as a summary.

    The model has no levels of effort: `none` turns reasoning off, every other word leaves it on.
    """

    enabled: bool | None = None
    effort: Effort | None = None
    max_tokens: NaturalInt | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None

    @property
    def is_on(self) -> bool:
        """Whether to reason."""
        return self.enabled if self.enabled is not None else self.effort != "none"

    @property
    def is_summarised(self) -> bool:
        """Whether reasoning is shown as a summary, which is all of it."""
        return (self.summary or self.generate_summary or "none") != "none"


class ResponsesRequest(Body):
    """A request for one response."""

    model: str
    input: Annotated[
        Annotated[str, Tag("~text")] | Annotated[list[Item], Tag("~list"), Field(fail_fast=True)],
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
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    metadata: dict[str, str] | None = Field(None, description="Repeated in the answer.")
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
