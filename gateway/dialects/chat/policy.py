"""How much of the sampling a client may choose: `open` is everything, `kvv` and `fixed` are what hosted Kimi allows."""

from collections.abc import Iterator
from typing import Literal

from gateway.dialects.chat.message_schema import AssistantMessage
from gateway.dialects.chat.messages import reasoning_of
from gateway.dialects.chat.mfjs import refuse_unless_mfjs
from gateway.dialects.chat.schema import BuiltinTool, ChatCompletionRequest, FunctionTool, NamedChoice
from gateway.dialects.form_fields import JsonSchemaFormat
from gateway.dialects.sampling import TEMPERATURE_INSTANT, TEMPERATURE_THINKING, TOP_P
from services.runtime.errors import InvalidRequest

ParamPolicy = Literal["open", "kvv", "fixed"]

MAX_KVV_TEMPERATURE = 1.0
MAX_STOPS = 5
MAX_STOP_BYTES = 32


def refuse_by_policy(policy: ParamPolicy, chat: ChatCompletionRequest, *, thinking: bool) -> None:
    """Raise InvalidRequest, in hosted Kimi's words, for a value that the policy does not allow."""
    if policy == "open":
        return
    if policy == "kvv" and chat.temperature is not None and chat.temperature > MAX_KVV_TEMPERATURE:
        raise InvalidRequest("invalid temperature: must be between 0 and 1 for this model", field="temperature")
    for name, value, allowed in _fixed_values(policy, chat, thinking=thinking):
        if value is not None and value != allowed:
            raise InvalidRequest(f"invalid {name}: only {allowed:g} is allowed for this model", field=name)
    if policy == "fixed":
        _refuse_as_hosted(chat, thinking=thinking)


def _fixed_values(
    policy: ParamPolicy, chat: ChatCompletionRequest, *, thinking: bool
) -> Iterator[tuple[str, float | None, float]]:
    """Yield field, requested value and the only allowed value."""
    if policy == "fixed":
        yield "temperature", chat.temperature, TEMPERATURE_THINKING if thinking else TEMPERATURE_INSTANT
    yield "top_p", chat.top_p, TOP_P
    yield "presence_penalty", chat.presence_penalty, 0
    yield "frequency_penalty", chat.frequency_penalty, 0
    yield "n", chat.n, 1


def _refuse_as_hosted(chat: ChatCompletionRequest, *, thinking: bool) -> None:
    if len(chat.stops) > MAX_STOPS:
        raise InvalidRequest(f"stop: at most {MAX_STOPS} strings are allowed", field="stop")
    if any(len(stop.encode()) > MAX_STOP_BYTES for stop in chat.stops):
        raise InvalidRequest(f"stop: a string may have at most {MAX_STOP_BYTES} bytes", field="stop")
    for index, tool in enumerate(chat.tools or ()):
        if isinstance(tool, FunctionTool) and tool.function.parameters is not None:
            refuse_unless_mfjs(tool.function.parameters, f"tools.{index}.function.parameters")
    if isinstance(chat.response_format, JsonSchemaFormat):
        refuse_unless_mfjs(chat.response_format.json_schema.schema_, "response_format.json_schema.schema")
    if not thinking:
        return
    if any(isinstance(tool, BuiltinTool) for tool in chat.tools or ()):
        raise InvalidRequest("tools: $web_search is incompatible with thinking enabled", field="tools")
    if chat.tool_choice == "required" or isinstance(chat.tool_choice, NamedChoice):
        word = "specified" if isinstance(chat.tool_choice, NamedChoice) else "required"
        raise InvalidRequest(f"tool_choice '{word}' is incompatible with thinking enabled", field="tool_choice")
    for index, message in enumerate(chat.messages):
        if not isinstance(message, AssistantMessage) or not message.tool_calls:
            continue
        if reasoning_of(message) is None:
            missing = "reasoning_content is missing in assistant tool call message"
            raise InvalidRequest(
                f"thinking is enabled but {missing} at index {index}", field=f"messages.{index}.reasoning_content"
            )
