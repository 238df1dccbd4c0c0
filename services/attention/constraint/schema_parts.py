"""What the parts of one way to meet a schema demand all together: types, values, lengths, members, items."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.attention.constraint.automaton import TextDemands, automaton_of
from services.attention.constraint.json_schemas import Demands, Schema, Way

MAX_TEXT_VISITS = 5_000
ANY_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
DATE, TIME = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d)", r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-][01]\d:[0-5]\d)"
UNKNOWN = "("
# What the grammar takes for a text of this format, or a part of it.
FORMATS = {
    "date-time": rf"^{DATE}T{TIME}$",
    "time": rf"^{TIME}$",
    "date": rf"^{DATE}$",
    "duration": r"^P(\d+D|\d+W|(\d+D)?T\d+H)$",
    "email": r"^[a-zA-Z0-9]+(\.[a-zA-Z0-9]+)*@[a-zA-Z0-9]+(\.[a-zA-Z0-9]+)*$",
    "hostname": r"^[a-zA-Z0-9]+(\.[a-zA-Z0-9]+)*$",
    "ipv6": r"^([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}$",
    "ipv4": r"^(\d|[1-9]\d|1\d\d)(\.(\d|[1-9]\d|1\d\d)){3}$",
    "uuid": r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
    "uri": r"^[a-z]+:[a-z0-9/.]*$",
}


def dump(value: object) -> str:
    """The text of a value as the grammar writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def types_of(way: Way) -> frozenset[str]:
    """The types that all parts of a way allow."""
    types = ANY_TYPES
    for part in way:
        if "type" in part:
            given = [part["type"]] if isinstance(part["type"], str) else part["type"]
            allowed = frozenset(given) | (frozenset({"integer"}) if "number" in given else frozenset())
            types &= allowed
    return types - {"integer"} if "number" in types else types


def values_of(way: Way) -> list[Any] | None:
    """The values that are allowed by name, None if any are."""
    sets = [part["enum"] if "enum" in part else [part["const"]] for part in way if "enum" in part or "const" in part]
    if not sets:
        return None
    types = types_of(way)
    return [value for value in sets[0] if all(value in one for one in sets[1:]) and _type_of(value) & types]


def _type_of(value: object) -> frozenset[str]:
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int() | float():
            return frozenset({"number", "integer"} if float(value).is_integer() else {"number"})
        case str():
            return frozenset({"string"})
    return frozenset({"array" if isinstance(value, list) else "object"})


def lowest(way: Way, keyword: str) -> int:
    """The largest of the least counts under this keyword."""
    return max((int(part[keyword]) for part in way if keyword in part), default=0)


def demands_of(way: Way) -> TextDemands | None:
    """What a string must satisfy; None if an expression or a format is not understood here."""
    patterns = [part["pattern"] for part in way if "pattern" in part]
    patterns += [FORMATS.get(part["format"], UNKNOWN) for part in way if "format" in part]
    found = [automaton_of(pattern, whole=False) for pattern in patterns]
    automata = tuple(one for one in found if one is not None)
    if len(automata) < len(found):
        return None
    most = min((int(part["maxLength"]) for part in way if "maxLength" in part), default=math.inf)
    return TextDemands(automata, lowest(way, "minLength"), most)


def most_prefixed(way: Way) -> int:
    """Items that may have a schema of their own."""
    return max((len(part.get("prefixItems", ())) for part in way), default=0)


def item(way: Way, index: int) -> Demands:
    """What the item at an index must meet."""
    return tuple(
        part["prefixItems"][index] if index < len(part.get("prefixItems", ())) else part.get("items", True)
        for part in way
    )


def member(way: Way, name: str) -> Demands:
    """What the member of a name must meet."""
    return tuple(one for part in way for one in _member_of(part, name))


def _member_of(part: Schema, name: str) -> Iterable[Schema | bool]:
    properties: Mapping[str, Schema | bool] = part.get("properties", {})
    found = [properties[name]] if name in properties else []
    for pattern, schema in part.get("patternProperties", {}).items():
        automaton = automaton_of(pattern, whole=False)
        # One that is not understood may match.
        if automaton is None or automaton.distance(automaton.after(automaton.start, name)) == 0:
            found.append(schema)
    return found or [part.get("additionalProperties", True)]


def needed_names(way: Way, names: Sequence[str] = ()) -> list[str]:
    """The names that must still come, in the order in which the grammar wants them: declared ones first."""
    required = [name for part in way for name in part.get("required", ()) if name not in names]
    declared = [name for part in way for name in part.get("properties", {})]
    place = {name: index for index, name in reversed(list(enumerate(declared)))}
    needed = sorted(dict.fromkeys(required), key=lambda name: place.get(name, len(declared)))
    missing = lowest(way, "minProperties") - len(names) - len(needed)
    if missing > 0:
        last = max((place[name] for name in names if name in place), default=-1)
        optional = [name for name in dict.fromkeys(declared) if name not in (*needed, *names) and place[name] > last]
        more = [*optional, *free_names(way, (*names, *needed, *declared), missing)][:missing]
        needed = sorted([*needed, *more], key=lambda name: place.get(name, len(declared)))
    return needed


def free_names(way: Way, taken: Sequence[str], count: int) -> list[str]:
    """Names that are not declared and may come nevertheless."""
    found: list[str] = []
    patterns = [pattern for part in way for pattern in part.get("patternProperties", {})]
    for pattern in patterns:
        automaton = automaton_of(pattern, whole=False)
        text = TextDemands((automaton,)).rest("", MAX_TEXT_VISITS) if automaton else None
        if text is not None and text not in taken:
            found.append(text)
    if all(part.get("additionalProperties", True) is not False for part in way):
        letters = (f"{chr(97 + number % 26)}{number // 26 or ''}" for number in range(count + len(taken)))
        found += [name for name in letters if name not in taken]
    return found[:count]
