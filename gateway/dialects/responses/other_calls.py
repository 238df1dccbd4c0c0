"""Items of tools that other servers or clients have: a history keeps them as calls and results like any other."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.request.chat_model import Call, Media, Message, Text

# What an item says of itself, and what of its fields is a result.
OWN = ("id", "call_id", "type", "status", "name", "server_label", "caller", "async", "namespace")
RESULTS = ("output", "outputs", "results", "result", "error")
# A client answers these with an item of its own.
ANSWERED_BY_CLIENT = ("local_shell_call", "shell_call", "apply_patch_call", "computer_call", "tool_search_call")
NOT_KEPT = "(the result was not kept)"
AN_IMAGE = "(an image)"


def call_of(kind: str, item: Mapping[str, Any], field: str) -> Call:
    """Return the call in an item of type `NAME_call`; its arguments are an action, an operation, or all fields."""
    name = joined(item.get("server_label"), item.get("name") or kind.removesuffix("_call"))
    arguments = item.get("arguments", item.get("action", item.get("operation")))
    if arguments is None:
        arguments = {key: value for key, value in item.items() if key not in (*OWN, *RESULTS)}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(call_id(item, field), name, text or "{}")


def result_of(kind: str, item: Mapping[str, Any], field: str) -> Message | None:
    """Return the result that an item of type `NAME_call` brings along; None where a client's item brings it."""
    if kind in ANSWERED_BY_CLIENT:
        return None
    results = [item[key] for key in RESULTS if item.get(key) is not None]
    if kind == "image_generation_call" and results:
        results = [AN_IMAGE]
    return Message("tool", (Text(_text(results[0]) if results else NOT_KEPT),), tool_call_id=call_id(item, field))


def output_of(item: Mapping[str, Any], field: str) -> Message:
    """Return the result in an item of type `NAME_call_output`: a text, a picture, or whatever it is as JSON."""
    output = item.get("output", item.get("tools", ""))
    content: Text | Media = Text(_text(output))
    if isinstance(output, Mapping) and isinstance(url := output.get("image_url"), str):
        content = Media("image", url, f"{field}.output.image_url")
    return Message("tool", (content,), tool_call_id=call_id(item, field))


def call_id(item: Mapping[str, Any], field: str) -> str:
    """Return the id that joins a call and its output; without one an item stands for itself."""
    return str(item.get("call_id") or item.get("id") or field)


def joined(*names: Any) -> str:
    """Return the names that are there, with dots between."""
    return ".".join(str(name) for name in names if name)


def _text(value: str | Mapping[str, Any] | Sequence[Any]) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
