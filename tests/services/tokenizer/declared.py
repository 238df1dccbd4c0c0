"""Declared tools as the parser of an answer needs them."""

from collections.abc import Iterable, Mapping
from typing import Any

from services.tokenizer.tools import DeclaredTool


def declared_tools(tools: Iterable[Mapping[str, Any]]) -> list[DeclaredTool]:
    """The functions among the tools, with the names of their arguments."""
    functions = [tool["function"] for tool in tools if tool["type"] == "function"]
    return [
        DeclaredTool(function["name"], frozenset((function.get("parameters") or {}).get("properties", {})))
        for function in functions
    ]
