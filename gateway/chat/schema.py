"""What POST /v1/chat/completions accepts: one field per line of the contract, types and ranges only."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from gateway.body import Body, Int, NaturalInt, PositiveInt

TOOL_NAME = r"^[A-Za-z0-9_.\-]{1,128}$"


def _text_or_list(value: object) -> str | None:
    """Which of the two forms a field has that may be a string or a list."""
    match value:
        case str():
            return "~text"
        case list():
            return "~list"
        case _:
            return None


def _text_or_object(value: object) -> str | None:
    """Which of the two forms a field has that may be a string or an object."""
    match value:
        case str():
            return "~text"
        case dict():
            return "~object"
        case _:
            return None


class TextPart(Body):
    """Text. `input_text` is its name in the Responses API."""

    type: Literal["text", "input_text"]
    text: str


class RefusalPart(Body):
    """A refusal that another model wrote; read as text."""

    type: Literal["refusal"]
    refusal: str


class MediaUrl(Body):
    """Where a picture or a video is: a data: URL, or a remote one where the server allows it."""

    url: str


Url = Annotated[
    Annotated[str, Tag("~text")] | Annotated[MediaUrl, Tag("~object")],
    Discriminator(
        _text_or_object,
        custom_error_type="url_form",
        custom_error_message="must be a string or an object with `url`",
    ),
]


class ImagePart(Body):
    """An image."""

    type: Literal["image_url"]
    image_url: Url


class VideoPart(Body):
    """A video."""

    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | RefusalPart | ImagePart | VideoPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("~text")] | Annotated[list[Part], Tag("~list")],
    Discriminator(
        _text_or_list,
        custom_error_type="content_form",
        custom_error_message="must be a string or a list of parts",
    ),
]


class AnyMessage(Body):
    """What every message may carry. Only the last one, an assistant's, may be partial."""

    name: str | None = None
    partial: bool | None = None


class SystemMessage(AnyMessage):
    """Instructions. `developer` is another word for `system`."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(AnyMessage):
    """What the user says."""

    role: Literal["user"]
    content: Content


class CalledFunction(Body):
    """Name and arguments of a call. Arguments that are an object instead of text are accepted."""

    name: str
    arguments: str | dict[str, Any] | None = Field(default=None, union_mode="left_to_right")


class MessageCall(Body):
    """A tool call of the history. The shape of its id is free."""

    id: str | None = None
    function: CalledFunction


class AssistantMessage(AnyMessage):
    """What the model said. `reasoning` wins over `reasoning_content`; null is absent, "" is not."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MessageCall] | None = None


class ToolMessage(AnyMessage):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    """A function that the model may call. Without `parameters` it takes no arguments."""

    name: Annotated[str, Field(pattern=TOOL_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool. Only functions exist."""

    type: Literal["function"]
    function: Function


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
        _text_or_object,
        custom_error_type="tool_choice_form",
        custom_error_message="must be none, auto, required, or an object that names a function",
    ),
]


class JsonSchema(Body):
    """A JSON schema for the answer. `schema` is its field name on the wire."""

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Body):
    """JSON after a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Body):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Thinking(Body):
    """Kimi's switch for reasoning, and whether reasoning of earlier turns stays in the prompt."""

    type: Literal["enabled", "disabled"] | None = None
    keep: Literal["all"] | None = None


class TemplateArguments(Body):
    """The arguments of the chat template that a client may set."""

    thinking: bool | None = None
    enable_thinking: bool | None = None
    preserve_thinking: bool | None = None


StopStrings = Annotated[
    Annotated[str, Tag("~text"), Field(min_length=1)]
    | Annotated[list[Annotated[str, Field(min_length=1)]], Tag("~list"), Field(max_length=16)],
    Discriminator(
        _text_or_list,
        custom_error_type="stop_form",
        custom_error_message="must be a string or a list of strings",
    ),
]


class ChatCompletionRequest(Body):
    """A chat completion request. Fields that are not listed here have no effect."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]

    max_completion_tokens: PositiveInt | None = None
    max_tokens: PositiveInt | None = None
    min_tokens: NaturalInt | None = None
    n: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[NaturalInt], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = Field(None, description="No effect: special tokens never appear in a chat.")
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    thinking: Thinking | None = None
    chat_template_kwargs: TemplateArguments | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
