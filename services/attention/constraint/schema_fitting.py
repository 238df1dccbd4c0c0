"""A JSON schema, fitted keyword by keyword to the grammar: keywords that cannot be enforced are left out, and named.

Null is an absent keyword, as in all of the API. Keywords that demand nothing are left out without a word. Every other
one is a demand that the answer may not meet: the caller refuses the schema, or names the keyword in the answer.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from services.attention.constraint.json_schemas import (
    NAMED,
    UNENFORCED,
    Path,
    Schema,
    Way,
    paths_of,
    replaced,
    resolve,
    rewritten,
)
from services.attention.constraint.schema_values import COUNTS, LOWER, UPPER, VALUES, is_anything, is_number
from services.attention.constraint.schema_ways import SchemaWays
from services.runtime.errors import InvalidRequest

# The complaint of the grammar's library about a schema; None: it is taken.
Check = Callable[[Schema], str | None]

TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
# Other formats are annotations, as the standard has it.
FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
# The values with which a keyword demands nothing.
EMPTY: Mapping[str, tuple[object, ...]] = {
    "uniqueItems": (False,),
    "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}),
    "propertyNames": (True, {}, {"type": "string"}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "minContains": (0,),
}
# Keywords whose values the grammar may fail over, with those that it reads together with them.
FRAGILE = (("pattern",), ("format",), (*LOWER, *UPPER), ("multipleOf",))
MOST_MULTIPLE = 10_000  # a larger step needs as many states
MOST_PATTERNS = 4  # that one string must match all together
# What is taken away where a schema fails as a whole, one after the other.
LAST_RESORTS = (
    *("multipleOf", "format", "pattern", "patternProperties", "minProperties", "maxProperties", "minLength"),
    *("maxLength", *LOWER, *UPPER, "allOf", "$ref", "enum", "const", "minItems", "maxItems", "prefixItems"),
    *("required", "additionalProperties", "anyOf", "items", "properties", "type"),
)


class Fitting:
    """One schema on its way.

    schema    what can be enforced
    left_out  what cannot, one sentence each, begun with the path of the keyword
    """

    def __init__(self, schema: Mapping[str, Any], check: Check) -> None:
        """InvalidRequest if nothing of it can be taken."""
        self.left_out: list[str] = []
        self._check = check
        self._root = dict(schema)
        self._id = self._root.get("$id") or self._root.get("id")
        self.schema = rewritten(self._root, self._fitted)
        self.schema = rewritten(self.schema, self._fragile)
        self._joined()
        self._whole()

    def _leave_out(self, path: Path, key: str, why: str) -> None:
        self.left_out.append(f"{'.'.join((*path, key))}: {why}")

    def _fitted(self, schema: Schema, path: Path) -> Schema:
        """Without what the standard does not know or the grammar never enforces."""
        kept: Schema = {}
        for key, value in _modern(schema).items():
            if (
                (value is None and key != "const")
                or key in ("$id", "$schema", "id")
                or _says_nothing(key, value, schema)
            ):
                continue
            why = self._fault(key, value)
            if why is not None:
                self._leave_out(path, key, why)
            elif key in NAMED:
                kept[key] = {name: True if one is None else one for name, one in value.items()}
            elif key == "$ref" and self._id and value.startswith(f"{self._id}#"):
                kept[key] = value[len(self._id) :]
            else:
                kept[key] = int(value) if key in COUNTS else value
        kept = _with_names(kept)
        for key in [key for key in kept if key in UNENFORCED]:
            self._leave_out(path, key, "cannot be enforced")
            del kept[key]
        if _counts_free_names(kept):
            self._leave_out(path, "minProperties", "2 or more cannot be enforced over free names")
            del kept["minProperties"]
        return kept

    def _fault(self, key: str, value: Any) -> str | None:
        """Why a keyword cannot have this value."""
        match key:
            case "type":
                types = value if isinstance(value, list) else [value]
                wrong = [one for one in types if not isinstance(one, str) or one not in TYPES]
                return f"{json.dumps(wrong[0])} is no type" if wrong else None if types else "no type is allowed"
            case "$ref":
                ref = value.removeprefix(str(self._id)) if isinstance(value, str) and self._id else value
                is_found = isinstance(ref, str) and resolve(self._root, ref) is not None
                return None if is_found else f"{json.dumps(value)} refers to nothing here"
            case "multipleOf" if is_number(value) and value > MOST_MULTIPLE:
                return f"more than {MOST_MULTIPLE} cannot be enforced"
        is_fine, expected = VALUES.get(key, (is_anything, ""))
        return None if is_fine(value) else expected

    def _fragile(self, schema: Schema, path: Path) -> Schema:
        """Without what the grammar's library fails over, by asking it."""
        kept = dict(schema)
        for keys in FRAGILE:
            self._ask(kept, keys, path)
        patterned = kept.get("patternProperties", {})
        for pattern in list(patterned):
            if (complaint := self._check({"patternProperties": {pattern: True}})) is not None:
                self._leave_out((*path, "patternProperties"), pattern, complaint)
                patterned = {name: one for name, one in patterned.items() if name != pattern}
                kept["patternProperties"] = patterned
        return kept

    def _joined(self) -> None:
        """Without what joins demands whose common automaton would be too large, by `allOf` or a reference."""
        ways = SchemaWays(self.schema, lambda _: None)
        for path in paths_of(self.schema):
            part = self._part(path)
            keys = [key for key in ("allOf", "$ref") if isinstance(part, dict) and key in part]
            if keys and (why := next(filter(None, map(_too_much, ways.ways((part,)))), None)) is not None:
                self._leave_out(path, keys[0], why)
                less = {key: value for key, value in part.items() if key != keys[0]}
                self.schema = replaced(self.schema, path, less)
                ways = SchemaWays(self.schema, lambda _: None)

    def _ask(self, kept: Schema, keys: Sequence[str], path: Path) -> None:
        """Take the keywords away that fail alone, then those that contradict each other."""

        def complaint_about(some: Sequence[str]) -> str | None:
            part = {key: kept[key] for key in ("type", *some) if key in kept}
            return self._check(part) if part.keys() & set(some) else None

        for key in keys:
            if key == "multipleOf" and isinstance(kept.get(key), int):
                continue  # the library takes each, and is long about the large ones
            if (complaint := complaint_about((key,))) is not None:
                if not _is_beyond_numbers(key, kept[key], kept.get("type")):
                    self._leave_out(path, key, complaint)
                del kept[key]
        for key in keys if len(keys) > 1 else ():
            if (complaint := complaint_about(keys)) is None:
                break
            if kept.pop(key, None) is not None:
                self._leave_out(path, key, complaint)

    def _whole(self) -> None:
        """Until the library takes the schema as a whole, take away from the innermost part that it fails over."""
        complaint = self._check(self.schema)
        while complaint is not None:
            path = next((one for one in paths_of(self.schema) if self._fails(one)), ())
            part = self._part(path)
            if not isinstance(part, dict) or not self._taken_away(part, path):
                raise InvalidRequest(complaint)
            complaint = self._check(self.schema)

    def _taken_away(self, part: Schema, path: Path) -> bool:
        """Take one keyword away; False if there is none."""
        complaint = self._complaint(path)
        if "oneOf" in part and complaint is not None and "oneOf" in complaint:
            self._leave_out(path, "oneOf", "enforced as anyOf, because its branches do not exclude each other")
            less = {**{key: value for key, value in part.items() if key != "oneOf"}, "anyOf": part["oneOf"]}
            if "anyOf" in part:
                less = {**less, "anyOf": part["anyOf"], "allOf": [*part.get("allOf", ()), {"anyOf": part["oneOf"]}]}
            self.schema = replaced(self.schema, path, less)
            return True
        if self._less_required(part, path):
            return True
        before = self.schema
        present = [key for key in (*LAST_RESORTS, "oneOf") if key in part]
        for key in present:
            self.schema = replaced(before, path, {one: value for one, value in part.items() if one != key})
            if not self._fails(path) or key == present[-1]:
                self._leave_out(path, key, complaint or "cannot be enforced")
                return True
        return False

    def _less_required(self, part: Schema, path: Path) -> bool:
        """Take away the demands of members that nothing meets; False if there are none."""
        before = self.schema
        impossible: list[str] = []
        for name in part.get("required", ()):
            self.schema = replaced(before, path, {**part, "required": [name]})
            if (complaint := self._complaint(path)) is not None:
                impossible.append(name)
                self._leave_out((*path, "required"), name, complaint)
        possible = [name for name in part.get("required", ()) if name not in impossible]
        self.schema = replaced(before, path, {**part, "required": possible}) if impossible else before
        return bool(impossible)

    def _part(self, path: Path) -> Any:
        part: Any = self.schema
        for step in path:
            part = part[int(step)] if isinstance(part, list) else part[step]
        return part

    def _fails(self, path: Path) -> bool:
        return self._complaint(path) is not None

    def _complaint(self, path: Path) -> str | None:
        """What the library says of one part of the schema alone, with what it refers to."""
        steps = (quote(step.replace("~", "~0").replace("/", "~1")) for step in path)
        moved = rewritten(self.schema, lambda one, _: {**one, "$ref": _moved(one["$ref"])} if "$ref" in one else one)
        return self._check({"$defs": {"root": moved}, "$ref": "/".join(("#/$defs/root", *steps))})


def _moved(ref: str) -> str:
    return f"#/$defs/root{ref[1:]}" if ref == "#" or ref.startswith("#/") else ref


def _modern(schema: Schema) -> Schema:
    """Keywords of older drafts in today's words."""
    new = dict(schema)
    if isinstance(new.get("items"), list):
        new["prefixItems"] = new.pop("items")
        if "additionalItems" in new:
            new["items"] = new.pop("additionalItems")
    for bound, exclusive in (LOWER, UPPER):
        if isinstance(new.get(exclusive), bool) and new.pop(exclusive) and bound in new:
            new[exclusive] = new.pop(bound)
    return new


def _says_nothing(key: str, value: object, schema: Schema) -> bool:
    if key == "format":
        return not isinstance(value, str) or value not in FORMATS
    if key == "uniqueItems" and schema.get("maxItems") in (0, 1):
        return True
    # 0 is no False here, and 1 no True.
    return any(value == empty and type(value) is type(empty) for empty in EMPTY.get(key, ()))


def _too_much(way: Way) -> str | None:
    """Why the demands of a way are too much together."""
    if sum("pattern" in part for part in way) > MOST_PATTERNS:
        return f"more than {MOST_PATTERNS} expressions for one text cannot be enforced"
    steps = [part["multipleOf"] for part in way if "multipleOf" in part]
    if len(steps) > 1 and math.prod(max(1, step) for step in steps) > MOST_MULTIPLE:
        return f"multiples of more than {MOST_MULTIPLE} together cannot be enforced"
    return None


def _is_beyond_numbers(key: str, bound: Any, kind: object) -> bool:
    """Whether every number of the type that clients hold is within the bound."""
    most = 2**63 - 1 if kind == "integer" else 1.7e308
    return bool(bound <= -most if key in LOWER else bound >= most if key in UPPER else False)


def _with_names(schema: Schema) -> Schema:
    """The names that properties may have, as properties."""
    names = schema.get("propertyNames")
    if not (isinstance(names, dict) and isinstance(names.get("enum"), list) and set(names) <= {"enum", "type"}):
        return schema
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    others, given = rest.get("additionalProperties", {}), rest.get("properties", {})
    if "patternProperties" in rest:
        return schema
    properties = {name: given.get(name, others) for name in names["enum"] if isinstance(name, str)}
    return {**rest, "properties": properties, "additionalProperties": False}


def _counts_free_names(schema: Schema) -> bool:
    """Whether two or more properties are demanded that may have any name: a name could come twice."""
    demanded, given = schema.get("minProperties", 0), len(schema.get("required", ()))
    free = schema.get("additionalProperties") is not False or "patternProperties" in schema
    return bool(free and demanded >= 2 and demanded > given)
