"""The tools of a Responses request: how the model sees them, and how a call of it becomes an output item again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.dialects.chat.schema import MAX_TOOL_NAME_CHARS
from gateway.dialects.responses.schema import CustomTool, FunctionTool, NamedChoice, NamespaceTool, Tool
from gateway.request.chat_model import Tool as ModelTool
from services.runtime.errors import InvalidRequest

INPUT = "input"


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """One tool as the client declared it: a function, or one that takes a text of its own form."""

    kind: Literal["function", "custom"]
    name: str
    namespace: str | None
    for_model: ModelTool


@dataclass(slots=True)
class DeclaredTools:
    """All tools that the model may call, by the name that it uses.

    dropped  what has no effect: tools of other servers, grammars that are only shown to the model
    """

    by_name: dict[str, DeclaredTool] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def add(self, tool: FunctionTool | CustomTool, space: NamespaceTool | None, field: str) -> None:
        """Add a tool; InvalidRequest, which names the field, if its name is taken or too long."""
        namespace, about = (None, None) if space is None else (space.name, space.description)
        name = joined_name(namespace, tool.name)
        if name in self.by_name:
            raise InvalidRequest(f"{field}.name: declared twice", field=f"{field}.name")
        if len(name) > MAX_TOOL_NAME_CHARS:
            raise InvalidRequest(
                f"{field}.name: more than {MAX_TOOL_NAME_CHARS} characters with its namespace", field=f"{field}.name"
            )
        match tool:
            case FunctionTool():
                function = tool.model_dump(include={"parameters", "strict"}, exclude_none=True)
                for_model = _for_model(name, [about, tool.description], function)
                self.by_name[name] = DeclaredTool("function", tool.name, namespace, for_model)
            case CustomTool():
                if tool.grammar is not None and tool.grammar.syntax == "lark":
                    self.dropped.append("tools.format")
                descriptions = [about, tool.description, _grammar_shown(tool)]
                for_model = _for_model(name, descriptions, {"parameters": _one_text(tool)})
                self.by_name[name] = DeclaredTool("custom", tool.name, namespace, for_model)

    def chosen(self, choice: NamedChoice) -> str | None:
        """Return the name by which the model calls the tool that is demanded; None if there is none."""
        matching = [
            name for name, tool in self.by_name.items() if tool.kind == choice.type and choice.name in (tool.name, name)
        ]
        return matching[0] if matching else None


def declared_tools(tools: Sequence[Tool]) -> DeclaredTools:
    """Return the tools of a request. InvalidRequest names the field that is wrong."""
    declared = DeclaredTools()
    for index, tool in enumerate(tools):
        match tool:
            case FunctionTool() | CustomTool():
                declared.add(tool, None, f"tools.{index}")
            case NamespaceTool():
                for inner_index, inner in enumerate(tool.tools):
                    declared.add(inner, tool, f"tools.{index}.tools.{inner_index}")
            case _:
                declared.dropped.append(f"tools.{tool.type}")
    return declared


def joined_name(namespace: str | None, name: str) -> str:
    """Return the name by which the model calls a tool."""
    return f"{namespace}.{name}" if namespace else name


def text_arguments(text: str) -> str:
    """Return the arguments with which the model calls a tool that takes one text."""
    return json.dumps({INPUT: text}, ensure_ascii=False)


def text_of_arguments(arguments: str) -> str:
    """Return the text again; the arguments themselves if the model broke their form."""
    try:
        text = json.loads(arguments)[INPUT]
    except (ValueError, KeyError, TypeError):
        return arguments
    return text if isinstance(text, str) else arguments


def _for_model(name: str, descriptions: Sequence[str | None], fields: Mapping[str, Any]) -> ModelTool:
    description = "\n\n".join(text for text in descriptions if text)
    described = {"description": description} if description else {}
    return ModelTool({"type": "function", "function": {"name": name, **described, **fields}})


def _one_text(tool: CustomTool) -> Mapping[str, Any]:
    """Return the schema of a text in the form which the tool demands, as far as a schema can say it."""
    text: dict[str, Any] = {"type": "string"}
    if tool.grammar is not None and tool.grammar.syntax == "regex":
        text["pattern"] = f"^(?:{tool.grammar.definition})$"
    return {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}


def _grammar_shown(tool: CustomTool) -> str | None:
    if tool.grammar is None or tool.grammar.syntax != "lark":
        return None
    return f"The input follows this Lark grammar:\n{tool.grammar.definition}"
