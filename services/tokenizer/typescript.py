"""JSON schemas as TypeScript types, in the dialect that K2.6 was trained on (TEMPLATE.md).

Differences from TypeScript (unescaped enum strings, `True`, names that need quotes) are the reference's, because the
tokens must be the same.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

INDENT = "  "
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}
_UNION_MEMBERS = {
    "string": "string",
    "number": "number",
    "integer": "number",
    "boolean": "boolean",
    "null": "null",
    "object": "{}",
    "array": "Array<any>",
}
_ENUM_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}


class UndeclarableSchema(ValueError):
    """A schema that the dialect has no type for. The tools are declared as JSON instead."""


@dataclass
class Definitions:
    """The `$defs` met so far in the parameters of one function, and whether `#` was referred to."""

    schemas: dict[str, Any] = field(default_factory=dict)
    refer_to_root: bool = False


@dataclass(frozen=True)
class ObjectType:
    """An object: members as (optional, name, text) in the order of the schema's keys, perhaps an index signature."""

    members: list[tuple[bool, str, str]]
    index_signature: str | None
    indent: str

    @property
    def text(self) -> str:
        """Return required members, then optional ones, both by name, then the index signature."""
        members = [text for _, _, text in sorted(self.members)]
        return self._braces(members if self.index_signature is None else [*members, self.index_signature])

    @property
    def text_in_key_order(self) -> str:
        """Return the form of a root that is referred to: members as they come, without an index signature."""
        return self._braces([text for _, _, text in self.members])

    def _braces(self, members: list[str]) -> str:
        return "{\n" + ",\n".join(members) + f"\n{self.indent}}}" if members else "{}"


def type_text(schema: Any, indent: str, definitions: Definitions) -> str:
    """Return the type of a schema whose first line stands behind `indent`. Raises UndeclarableSchema."""
    match schema:
        case bool():
            text = "any" if schema else "null"
        case {"$ref": reference}:
            text = _reference(reference, definitions)
        case {"anyOf": list(alternatives)}:
            text = " | ".join(type_text(alternative, indent, definitions) for alternative in alternatives)
        case {"enum": list(values)}:
            _check_enum(values, schema)
            text = " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
        case {"type": list(names)}:
            text = " | ".join(_union_member(name) for name in names)
        case {"type": "object"}:
            text = object_type(schema, indent, definitions).text
        case {"type": "array"}:
            text = _array(schema.get("items") or True, indent, definitions)
        case {"type": str(name)}:
            text = "number" if name == "integer" else name
        case dict() if not schema:
            text = "any"
        case _:
            raise UndeclarableSchema(f"no type for {schema!r:.80}")
    return text


def object_type(schema: Any, indent: str, definitions: Definitions) -> ObjectType:
    """Return the object type of a schema, whatever its `type` says."""
    if not isinstance(schema, Mapping):
        raise UndeclarableSchema(f"expected an object schema, found {schema!r:.80}")
    definitions.schemas.update(_mapping(schema.get("$defs") or {}))
    inner = indent + INDENT
    signature = _index_signature(schema.get("additionalProperties"), inner, definitions)
    required = schema.get("required", [])
    if not isinstance(required, list):
        raise UndeclarableSchema("required is no list")
    required_names = {name for name in required if isinstance(name, str)}
    members = []
    for name, member in _mapping(schema.get("properties", {})).items():
        optional = name not in required_names
        text = f"{inner}{name}{'?' if optional else ''}: {type_text(member, inner, definitions)}"
        members.append(
            (optional, name, "\n".join([*comment_lines(member, inner), *_default_lines(member, inner), text]))
        )
    return ObjectType(members, signature, indent)


def comment_lines(schema: Any, indent: str) -> list[str]:
    """Return the comment above a type: its description, then its constraints."""
    if not isinstance(schema, Mapping):
        return []
    lines = description_lines(schema, indent)
    declared = schema.get("type")
    if isinstance(declared, str) and not schema.keys() & {"$ref", "anyOf", "enum"}:
        present = [f"{name}: {schema[name]}" for name in _CONSTRAINTS.get(declared, ()) if name in schema]
        lines += [f"{indent}// {', '.join(present)}"] if present else []
    return lines


def description_lines(schema: Mapping[str, Any], indent: str) -> list[str]:
    """Return the description as comment lines; its empty lines stay empty."""
    description = schema.get("description")
    if not description:
        return []
    if not isinstance(description, str):
        raise UndeclarableSchema("a description is no string")
    return [f"{indent}// {line}" if line else "" for line in description.split("\n")]


def _default_lines(schema: Any, indent: str) -> list[str]:
    default = schema.get("default") if isinstance(schema, Mapping) else None
    if default is None:
        return []
    text = repr(default) if isinstance(default, int | float) else json.dumps(default, ensure_ascii=False)
    return [f"{indent}// Default: {text}"]


def _array(items: Any, indent: str, definitions: Definitions) -> str:
    inner = indent + INDENT
    comments = comment_lines(items, inner)
    if not comments:
        return f"Array<{type_text(items, indent, definitions)}>"
    return "\n".join(["Array<", *comments, f"{inner}{type_text(items, inner, definitions)}", f"{indent}>"])


def _index_signature(schema: Any, indent: str, definitions: Definitions) -> str | None:
    if schema is None:
        return None
    # Here false means that there is nothing else, not that the value is null.
    text = "never" if schema is False else type_text(schema, indent, definitions)
    return f"{indent}[k: string]: {text}"


def _reference(reference: Any, definitions: Definitions) -> str:
    if reference == "#":
        definitions.refer_to_root = True
        return "parameters"
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        name = reference.rpartition("/")[2]
        if name in definitions.schemas:
            return name
    raise UndeclarableSchema(f"{reference!r:.80} refers to nothing known here")


def _union_member(name: Any) -> str:
    if not isinstance(name, str) or name not in _UNION_MEMBERS:
        raise UndeclarableSchema(f"no union member for {name!r:.80}")
    return _UNION_MEMBERS[name]


def _check_enum(values: list[Any], schema: Mapping[str, Any]) -> None:
    """Raise for a value of another type than the declared one, which may be a pair with null."""
    declared = schema.get("type")
    if isinstance(declared, list):
        others = [name for name in declared if name != "null"] or ["null"]
        if len(declared) not in (1, 2) or len(others) > 1:
            raise UndeclarableSchema("an enum of several types")
        declared = others[0]
    expected = _ENUM_TYPES.get(declared) if isinstance(declared, str) else None
    if expected and not all(value is None or isinstance(value, expected) for value in values):
        raise UndeclarableSchema(f"an enum value is no {declared}")


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UndeclarableSchema(f"expected an object, found {value!r:.80}")
    return value
