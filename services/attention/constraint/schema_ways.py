"""The ways in which a value can meet a JSON schema, and the shortest text of each: a least fixed point.

Only what the grammar enforces matters here. Every text is a proposal that the grammar's own matcher checks.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from threading import RLock

from services.attention.constraint.json_schemas import Demands, Schema, Way, resolve
from services.attention.constraint.number_texts import fraction, number_rest
from services.attention.constraint.schema_parts import (
    MAX_TEXT_VISITS,
    demands_of,
    dump,
    item,
    lowest,
    member,
    most_prefixed,
    needed_names,
    types_of,
    values_of,
)

MAX_WAYS = 256
MAX_NODES = 20_000
MAX_TEXT_BYTES = 16 * 1024
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
SCALAR_KEYWORDS = {
    "integer": BOUNDS,
    "number": BOUNDS,
    "string": ("pattern", "format", "minLength", "maxLength"),
}
COMBINING = ("allOf", "anyOf", "oneOf", "$ref")


class TooLargeError(Exception):
    """The schema has more parts than are looked through."""


class SchemaWays:
    """One schema with all that it refers to. Remembers its findings; callers hold its lock.

    search  finds a text by the grammar itself, for a number or string that is not understood here
    """

    def __init__(self, root: Schema, search: Callable[[Schema], str | None]) -> None:
        self.lock = RLock()
        self._root = root
        self._search_text = search
        self._ways: dict[tuple[int, ...], list[Way]] = {}
        self._texts: dict[tuple[int, ...], str | None] = {}
        self._found: dict[str, str | None] = {}
        self._kept: dict[int, Schema | bool] = {}  # keeps ids from being used again

    @property
    def demands(self) -> Demands:
        return (self._root,)

    def ways(self, demands: Demands) -> list[Way]:
        """All ways to meet the demands, none if they contradict each other."""
        key = self._key(demands)
        if key not in self._ways:
            if len(self._ways) > MAX_NODES:
                raise TooLargeError
            found = product(*(self._ways_of(one, frozenset()) for one in demands))
            joined = (tuple(part for way in parts for part in way) for parts in found)
            self._ways[key] = [way for way in islice(joined, MAX_WAYS) if types_of(way)]
        return self._ways[key]

    def _ways_of(self, schema: Schema | bool, open_refs: frozenset[str]) -> list[Way]:
        if isinstance(schema, bool):
            return [()] if schema else []
        factors: list[list[Way]] = []
        if any(key not in COMBINING for key in schema):
            factors.append([(schema,)])
        ref = schema.get("$ref")
        if isinstance(ref, str):
            # A reference to itself without a value in between is met by nothing.
            target = None if ref in open_refs else resolve(self._root, ref)
            factors.append([] if target is None else self._ways_of(target, open_refs | {ref}))
        factors += [self._ways_of(one, open_refs) for one in schema.get("allOf", ())]
        for key in ("anyOf", "oneOf"):
            if key in schema:
                factors.append([way for one in schema[key] for way in self._ways_of(one, open_refs)][:MAX_WAYS])
        return [tuple(part for way in ways for part in way) for ways in islice(product(*factors), MAX_WAYS)]

    def _key(self, demands: Demands) -> tuple[int, ...]:
        self._kept.update((id(one), one) for one in demands)
        return tuple(sorted({id(one) for one in demands}))

    def shortest(self, demands: Demands) -> str | None:
        """A shortest text; None if no finite one meets the demands, or none within the bounds."""
        key = self._key(demands)
        if key not in self._texts:
            self._settle(demands)
        return self._texts[key]

    def sizes(self, demands: Demands) -> list[int]:
        """Bytes of the shortest text of each way."""
        self.shortest(demands)
        return [len(text) for way in self.ways(demands) if (text := self.way_text(way))]

    def _settle(self, demands: Demands) -> None:
        """Find the least fixed point over all that the demands need: texts get shorter until none does any more."""
        order = self._needed(demands)
        for key, _ in order:
            self._texts[key] = None
        is_changed = True
        while is_changed:
            is_changed = False
            for key, one in order:
                old = self._texts[key]
                best = min((self.way_text(way) for way in self.ways(one)), key=_length, default=None)
                if _length(best) < _length(old) and _length(best) <= MAX_TEXT_BYTES:
                    self._texts[key] = best
                    is_changed = True

    def _needed(self, demands: Demands) -> list[tuple[tuple[int, ...], Demands]]:
        """All demands that a text may need, inner ones first, so that one round is nearly always enough."""
        order: list[tuple[tuple[int, ...], Demands]] = []
        entered: set[tuple[int, ...]] = set()
        stack: list[tuple[Demands, bool]] = [(demands, False)]
        while stack:
            one, is_left = stack.pop()
            key = self._key(one)
            if is_left:
                order.append((key, one))
            elif key not in entered and key not in self._texts:
                entered.add(key)
                if len(entered) + len(self._texts) > MAX_NODES:
                    raise TooLargeError
                stack.append((one, True))
                stack += [(need, False) for way in self.ways(one) for need in self._needs(way)]
        return order

    def _needs(self, way: Way) -> Iterator[Demands]:
        types = types_of(way)
        if "object" in types:
            for name in needed_names(way):
                yield member(way, name)
        if "array" in types and (least := lowest(way, "minItems")):
            yield from (item(way, index) for index in range(min(least, most_prefixed(way) + 1)))

    def way_text(self, way: Way) -> str | None:
        """The shortest text of one way, from the texts of its parts that are known by now."""
        values = values_of(way)
        if values is not None:
            return min((dump(value) for value in values), key=len, default=None)
        texts: list[str | None] = []
        for kind in types_of(way):
            match kind:
                case "null":
                    texts.append("null")
                case "boolean":
                    texts.append("true")
                case "integer" | "number":
                    number = number_rest(way, "") or (fraction(way) if kind == "number" else None)
                    texts.append(self._search(kind, way) if number is None else number)
                case "string":
                    if lowest(way, "minLength") > MAX_TEXT_BYTES:
                        continue
                    demands = demands_of(way)
                    text = None if demands is None else demands.rest("", MAX_TEXT_VISITS)
                    texts.append(self._search(kind, way) if text is None else dump(text))
                case "array":
                    texts.append(self.rest_of_array(way, 0))
                case "object":
                    texts.append(self.rest_of_object(way, ()))
        return min(texts, key=_length, default=None)

    def rest_of_array(self, way: Way, num_items: int) -> str | None:
        """The shortest text from behind so many items to the closing bracket.

        The opening one is part of it if there are no items.
        """
        missing = max(0, lowest(way, "minItems") - num_items)
        if missing > MAX_TEXT_BYTES:
            return None
        prefixed = most_prefixed(way)
        head = [self._known(item(way, index)) for index in range(num_items, min(prefixed, num_items + missing))]
        num_others = missing - len(head)
        other = self._known(item(way, prefixed)) if num_others else ""
        if other is None or any(text is None for text in head) or num_others * (len(other) + 1) > MAX_TEXT_BYTES:
            return None
        items = ",".join([text for text in head if text is not None] + [other] * num_others)
        return f"[{items}]" if num_items == 0 else f",{items}]" if items else "]"

    def rest_of_object(self, way: Way, names: Sequence[str]) -> str | None:
        """The same for members: from behind the ones of these names."""
        members: list[str] = []
        for name in needed_names(way, names):
            text = self._known(member(way, name))
            if text is None:
                return None
            members.append(f"{dump(name)}:{text}")
        if sum(map(len, members)) > MAX_TEXT_BYTES:
            return None
        text = ",".join(members)
        return f"{{{text}}}" if not names else f",{text}}}" if text else "}"

    def _search(self, kind: str, way: Way) -> str | None:
        wanted = ("type", *SCALAR_KEYWORDS[kind])
        parts = [{key: value for key, value in part.items() if key in wanted} for part in way]
        key = json.dumps([kind, parts])
        if key not in self._found:
            self._found[key] = self._search_text({"allOf": [{"type": kind}, *parts]})
        return self._found[key]

    def _known(self, demands: Demands) -> str | None:
        key = self._key(demands)
        if key not in self._texts:
            self._settle(demands)
        return self._texts[key]


def _length(text: str | None) -> float:
    return math.inf if text is None else len(text)
