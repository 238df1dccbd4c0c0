"""What POST /v1/chat/completions accepts: one field per line of the contract, types and ranges only."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from gateway.dialects.chat.message_schema import ChatMessage
from gateway.dialects.form_fields import FormFields
from gateway.dialects.sampling import SamplingFields
from gateway.http.body import Body, Int, NaturalInt, PositiveInt, text_or_object

MAX_TOOL_NAME_CHARS = 128
TOOL_NAME = rf"^[A-Za-z0-9_.\-]{{1,{MAX_TOOL_NAME_CHARS}}}$"


class Function(Body):
    """A function that the model may call. Without `parameters` it takes no arguments."""

    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    """A function of the client."""

    type: Literal["function"]
    function: Function


class Builtin(Body):
    """The name of a function that Kimi's own service has."""

    name: Literal["$web_search"]


class BuiltinTool(Body):
    """A function of Kimi's own service."""

    type: Literal["builtin_function"]
    function: Builtin


Tool = Annotated[FunctionTool | BuiltinTool, Field(discriminator="type")]


class ChosenFunction(Body):
    """The name of the function that must be called."""

    name: str


class NamedChoice(Body):
    """A call of one named function is demanded."""

    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~text")] | Annotated[NamedChoice, Tag("~object")],
    Discriminator(
        text_or_object,
        custom_error_type="tool_choice_form",
        custom_error_message="must be none, auto, required, or an object that names a function",
    ),
]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""How much to reason. The model has no levels: `none` turns reasoning off, every other word leaves it on."""


def _thinking_word(*words: str) -> BeforeValidator:
    """Return a check of a word. Clients look for "invalid thinking" in its message."""

    def check(value: object) -> object:
        if value is not None and value not in words:
            raise PydanticCustomError("thinking", "invalid thinking: must be {words}", {"words": " or ".join(words)})
        return value

    return BeforeValidator(check)


def _thinking_object(value: object) -> object:
    if value is not None and not isinstance(value, dict):
        raise PydanticCustomError("thinking", "invalid thinking: must be an object")
    return value


class Thinking(Body):
    """Kimi's switch for reasoning, and whether reasoning of earlier turns stays in the prompt."""

    type: Annotated[Literal["enabled", "disabled"] | None, _thinking_word("enabled", "disabled")] = None
    keep: Annotated[Literal["all"] | None, _thinking_word("all")] = None
    budget_tokens: NaturalInt | None = None


class TemplateArguments(Body):
    """The arguments of the chat template that a client may set."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None
    thinking_budget: NaturalInt | None = None


class Reasoning(Body):
    """OpenRouter's switch for reasoning, its budget, and whether it is shown."""

    enabled: bool | None = None
    effort: Effort | None = None
    max_tokens: NaturalInt | None = None
    exclude: bool | None = None


class ChatCompletionRequest(SamplingFields, FormFields):
    """A chat completion request. The answer's header `x-moonshard-ignored` names fields that had no effect."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]

    max_completion_tokens: PositiveInt | None = None
    skip_special_tokens: bool | None = Field(None, description="No effect: special tokens never appear in a chat.")
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    thinking: Annotated[Thinking | None, BeforeValidator(_thinking_object)] = None
    chat_template_kwargs: TemplateArguments | None = None
    enable_thinking: bool | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: Effort | None = None
    include_reasoning: bool | None = None
    thinking_budget: NaturalInt | None = Field(None, description="Most tokens of reasoning.")
    thinking_token_budget: NaturalInt | None = Field(None, description="vLLM's name of `thinking_budget`.")
    thinking_budget_tokens: NaturalInt | None = Field(None, description="llama.cpp's name of `thinking_budget`.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def token_limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, as the client named it, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens
