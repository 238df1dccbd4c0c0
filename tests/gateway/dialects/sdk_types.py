"""The official SDK's types with unknown fields forbidden, except those that our contract adds."""

from collections.abc import Iterator, Mapping
from typing import Any

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

OURS: Mapping[str, set[str]] = {
    "CompletionUsage": {"cached_tokens"},
    "ChatCompletionMessage": {"reasoning", "reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "chat_completion.Choice": {"matched_stop"},
    "chat_completion_chunk.Choice": {"usage", "matched_stop"},
    "completion_choice.CompletionChoice": {"matched_stop"},
    "response.Response": {"presence_penalty", "frequency_penalty", "store"},
}


def check_completion(body: Mapping[str, Any]) -> ChatCompletion:
    """The body as the SDK's type; fails on a missing, mistyped or unknown field."""
    return _checked(ChatCompletion, body)


def check_chunk(body: Mapping[str, Any]) -> ChatCompletionChunk:
    """The same for a chunk of a stream."""
    return _checked(ChatCompletionChunk, body)


def check_text_completion(body: Mapping[str, Any]) -> Completion:
    """The same for a plain completion."""
    return _checked(Completion, body)


def _checked(kind: type[BaseModel], body: Mapping[str, Any]) -> Any:
    return checked(kind.model_validate(body, strict=True))


def checked(parsed: Any) -> Any:
    """The same again; fails on unknown fields anywhere in it."""
    assert list(_unknown(parsed)) == []
    return parsed


def _unknown(value: Any) -> Iterator[str]:
    if isinstance(value, BaseModel):
        name = type(value).__name__
        module = type(value).__module__.rpartition(".")[2]
        allowed = OURS.get(name, set()) | OURS.get(f"{module}.{name}", set())
        for extra in set(value.model_extra or {}) - allowed:
            yield f"{module}.{name}.{extra}"
        for _, field in value:
            yield from _unknown(field)
    elif isinstance(value, list):
        for item in value:
            yield from _unknown(item)
