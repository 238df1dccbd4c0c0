"""The tools that a client declares."""

import json
from dataclasses import dataclass
from typing import Any

from services.tokenizer.invalid import invalid

MAX_DEPTH = 200

Json = dict[str, Any]


@dataclass(frozen=True)
class DeclaredTool:
    """A function that the model may call, as the parser of its output needs it."""

    name: str
    properties: frozenset[str] = frozenset()


def parse_tools(tools_json: str) -> list[Json]:
    """Return the declared tools with the keys of every object sorted, as the reference sorts them.

    Raises InvalidRequest for what is not a JSON list of objects, is nested deeper than MAX_DEPTH, or has strings that
    are no Unicode text (half of a surrogate pair).
    """
    if not tools_json:
        return []
    try:
        tools = json.loads(tools_json, parse_constant=_refuse_constant)
        json.dumps(tools, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid("tools", f"the tools are no valid JSON: {error}") from error
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise invalid("tools", "the tools must be a list")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise invalid(f"tools[{index}]", "a tool must be an object")
    sorted_tools: list[Json] = _sorted(tools, MAX_DEPTH)
    return sorted_tools


def _sorted(value: Any, depth: int) -> Any:
    if depth == 0:
        raise invalid("tools", f"the tools are nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        return {key: _sorted(value[key], depth - 1) for key in sorted(value)}
    return [_sorted(item, depth - 1) for item in value] if isinstance(value, list) else value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
