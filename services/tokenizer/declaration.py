"""The declaration of tools in a prompt: as TypeScript where their schemas allow it, else as JSON (TEMPLATE.md)."""

import json
from collections.abc import Mapping, Sequence

from services.tokenizer.tools import Json
from services.tokenizer.typescript import Definitions, UndeclarableSchema, description_lines, object_type, type_text


def declare(tools: Sequence[Json]) -> str:
    """Return the declaration of tools that `parse_tools` returned; empty without tools.

    One schema that TypeScript cannot express turns the whole list into JSON, as in the reference.
    """
    if not tools:
        return ""
    try:
        declaration = _namespace(tools)
    except UndeclarableSchema:
        declaration = ""
    return declaration or json.dumps(tools, ensure_ascii=False, separators=(",", ":"))


def _namespace(tools: Sequence[Json]) -> str:
    functions = [tool["function"] for tool in tools if tool.get("type") == "function" and tool.get("function")]
    if not functions:
        return ""
    lines = ["# Tools", "", "## functions", "namespace functions {"]
    for function in functions:
        lines += _function(function)
    return "\n".join([*lines, "}", ""])


def _function(function: object) -> list[str]:
    if not isinstance(function, Mapping):
        raise UndeclarableSchema("a function is no object")
    definitions = Definitions()
    root = object_type(function.get("parameters") or {}, "", definitions)
    parameters, interfaces = root.text, []
    # Read before the definitions are written: a reference to the root from inside them does not name the root.
    if definitions.refer_to_root:
        parameters = "parameters"
        interfaces = [f"interface parameters {root.text_in_key_order}"]
    # A copy: nested definitions can be referred to, but get no interface of their own.
    for name, schema in dict(definitions.schemas).items():
        if not isinstance(schema, Mapping):
            raise UndeclarableSchema(f"the definition of {name} is no object")
        interfaces += [*description_lines(schema, ""), f"interface {name} {type_text(schema, '', definitions)}"]
    signature = f"type {function.get('name', 'function')} = (_: {parameters}) => any;"
    return [*interfaces, *description_lines(function, ""), signature]
