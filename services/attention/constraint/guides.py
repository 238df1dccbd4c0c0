"""Guides to the end of a text: for JSON after a schema, for a regular expression, for one of several texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from services.attention.constraint.automaton import TextDemands
from services.attention.constraint.endings import (
    CONTINUATIONS,
    FREE_TEXT,
    NUM_CONTINUATIONS,
    Guide,
    Unguided,
)
from services.attention.constraint.json_place import Container, JsonPlace
from services.attention.constraint.json_schemas import Demands, Way
from services.attention.constraint.number_texts import fraction, number_rest
from services.attention.constraint.schema_parts import (
    demands_of,
    dump,
    free_names,
    item,
    member,
    needed_names,
    types_of,
    values_of,
)
from services.attention.constraint.schema_ways import SchemaWays, TooLargeError

MAX_TEXT_VISITS = 2_000
START = JsonPlace()
WORDS = ("true", "false", "null")
IN_ESCAPE = tuple(bytes([byte]) for byte in b'0n"123456789abcdefABCDEF')


@dataclass(frozen=True)
class TextGuide(Guide):
    """A whole text that must satisfy some demands; `begun` is what is there of it."""

    demands: TextDemands
    begun: bytes = b""

    def after(self, text: bytes) -> Guide:
        return replace(self, begun=self.begun + text)

    def proposals(self) -> Sequence[bytes]:
        try:
            rest = self.demands.rest(self.begun.decode(), MAX_TEXT_VISITS)
        except UnicodeDecodeError:
            return [bytes([byte]) for byte in CONTINUATIONS]
        return [] if rest is None else [rest.encode()]

    def narrowed(self, allowed: bytes) -> bytes:
        return Unguided().narrowed(allowed)


@dataclass(frozen=True)
class ChoiceGuide(Guide):
    """One of several texts."""

    texts: tuple[bytes, ...]
    begun: bytes = b""

    def after(self, text: bytes) -> Guide:
        return replace(self, begun=self.begun + text)

    def proposals(self) -> Sequence[bytes]:
        size = len(self.begun)
        return sorted((text[size:] for text in self.texts if text.startswith(self.begun)), key=len)

    def narrowed(self, allowed: bytes) -> bytes:
        return allowed


@dataclass(frozen=True)
class JsonGuide(Guide):
    """JSON after a schema, as compact as the grammar writes it."""

    ways: SchemaWays = field(compare=False)
    place: JsonPlace = START

    def after(self, text: bytes) -> "JsonGuide":
        return replace(self, place=self.place.after(text))

    @property
    def is_between(self) -> bool:
        return not self.place.hand

    @property
    def can_end(self) -> bool:
        """Whether the value may be complete."""
        place = self.place
        return not place.containers and (place.is_whole or (bool(place.hand) and not place.in_string))

    @property
    def key(self) -> object:
        if self.place.is_name or not self.place.in_string:
            return self.place
        return self.place._replace(hand=b"x" * len(self.place.hand))

    def narrowed(self, allowed: bytes) -> bytes:
        place = self.place
        if not place.in_string:
            # What is open is closed as soon as it can be, and no space is needed.
            for closer in b"}]":
                if closer in allowed:
                    return bytes([closer])
            return allowed.replace(b" ", b"")
        if all(byte in CONTINUATIONS for byte in allowed):
            # Inside a character; which one it becomes decides nothing, in a name least of all.
            return allowed[: 1 if len(allowed) == len(CONTINUATIONS) else NUM_CONTINUATIONS]
        if len(allowed) > FREE_TEXT:
            return b'"' if 0x22 in allowed else Unguided().narrowed(allowed.replace(b"\\", b""))
        return allowed

    def proposals(self) -> Sequence[bytes]:
        """The rest of the value in hand, or else of the innermost open container."""
        with self.ways.lock:
            try:
                return [text.encode() for text in self._texts()] or self._bytes_in_character()
            except TooLargeError:
                return ()

    def _bytes_in_character(self) -> Sequence[bytes]:
        if self.place.in_string and self.place.text_in_hand is None:
            return [*IN_ESCAPE, *(bytes([byte]) for byte in CONTINUATIONS)]
        return ()

    def _texts(self) -> list[str]:
        place = self.place
        if place.in_string and place.text_in_hand is None:
            return []
        around, demands = self._open_ways()
        if place.after_name:
            return [":"]
        if place.is_whole:
            found = self._rests(around)
        elif place.is_name:
            found = self._names(around, place.text_in_hand) if place.in_string else self._first_names(around)
        elif place.in_string:
            found = self._string_rests(demands, place.text_in_hand or "")
        elif place.hand:
            ends = list(self._rests(around)) or [""]
            found = (rest + end for rest in self._word_rests(demands, place.hand.decode()) for end in ends)
        else:
            found = self._values(around, demands)
        return sorted(dict.fromkeys(text for text in found if text), key=len)

    def _open_ways(self) -> tuple[list[Way], list[Demands]]:
        """The ways of the innermost container that fit its members so far, and what the value in hand must meet."""
        demands: list[Demands] = [self.ways.demands]
        around: list[Way] = []
        for depth, container in enumerate(self.place.containers, 1):
            around = [way for one in demands for way in self.ways.ways(one) if self._fits(way, container)]
            is_next = depth == len(self.place.containers) and not self.place.hand and not container.is_object
            demands = _distinct(
                member(way, container.names[-1])
                if container.is_object
                else item(way, container.num_items if is_next else container.num_items - 1)
                for way in around
                if container.names or not container.is_object
            )
        return around, demands

    def _fits(self, way: Way, container: Container) -> bool:
        if ("object" if container.is_object else "array") not in types_of(way):
            return False
        return all(False not in member(way, name) for name in container.names)

    def _rests(self, around: list[Way]) -> Iterator[str]:
        """What closes the innermost container after a complete value."""
        if self.place.containers:
            container = self.place.containers[-1]
            for way in around:
                if values_of(way) is not None:
                    continue  # the matcher forces what stands in a value that is given as a whole
                if container.is_object:
                    yield self.ways.rest_of_object(way, container.names) or ""
                else:
                    yield self.ways.rest_of_array(way, container.num_items) or ""

    def _first_names(self, around: list[Way]) -> Iterator[str]:
        """A member, or the end, where a name must come next."""
        container = self.place.containers[-1]
        for way in around:
            if not self.place.after_comma:
                yield (self.ways.rest_of_object(way, ()) or "")[1:]
            elif needed_names(way, container.names):
                yield (self.ways.rest_of_object(way, container.names) or "")[1:]
            else:
                for name in self._possible_names(way, container):
                    yield from self._member(way, name, "")

    def _names(self, around: list[Way], begun: str | None) -> Iterator[str]:
        """The rest of a name that has begun, with its value."""
        container, begun = self.place.containers[-1], begun or ""
        for way in around:
            possible = {*needed_names(way, container.names), *self._possible_names(way, container), begun, f"{begun}a"}
            for name in sorted(possible):
                if name.startswith(begun) and name not in container.names and False not in member(way, name):
                    yield from self._member(way, name, begun)

    def _possible_names(self, way: Way, container: Container) -> list[str]:
        declared = [name for part in way for name in part.get("properties", {}) if name not in container.names]
        return [*declared, *free_names(way, (*container.names, *declared), 1)]

    def _member(self, way: Way, name: str, begun: str) -> Iterator[str]:
        value = self.ways.shortest(member(way, name))
        if value is not None:
            opening = dump(name) if not begun and not self.place.in_string else dump(name[len(begun) :])[1:]
            yield f"{opening}:{value}"

    def _string_rests(self, demands: list[Demands], begun: str) -> Iterator[str]:
        for way in self._ways_of(demands):
            values = values_of(way)
            if values is not None:
                yield from (dump(v[len(begun) :])[1:] for v in values if isinstance(v, str) and v.startswith(begun))
            elif "string" in types_of(way) and (wanted := demands_of(way)):
                rest = wanted.rest(begun, MAX_TEXT_VISITS)
                if rest is not None:
                    yield dump(rest)[1:]

    def _word_rests(self, demands: list[Demands], begun: str) -> Iterator[str]:
        yield ""
        yield from (word[len(begun) :] for word in WORDS if word.startswith(begun))
        if begun[-1] in ".eE+-":
            yield "0"
        for way in self._ways_of(demands):
            short = fraction(way)
            if short is not None and short.startswith(begun):
                yield short[len(begun) :]
            texts = map(dump, values_of(way) or ())
            yield from (text[len(begun) :] for text in texts if text.startswith(begun))
            rest = number_rest(way, begun)
            if rest is not None:
                yield rest

    def _values(self, around: list[Way], demands: list[Demands]) -> Iterator[str]:
        """A value, where one must come next; in an array all values that are missing, and its end."""
        if not self.place.containers or self.place.containers[-1].is_object:
            yield from (self.ways.shortest(one) or "" for one in demands)
            return
        num_items = self.place.containers[-1].num_items
        for way in around:
            if not self.place.after_comma:
                yield (self.ways.rest_of_array(way, 0) or "")[1:]
            value, rest = self.ways.shortest(item(way, num_items)), self.ways.rest_of_array(way, num_items + 1)
            if value is not None and rest is not None:
                yield value + rest

    def _ways_of(self, demands: list[Demands]) -> Iterator[Way]:
        return (way for one in demands for way in self.ways.ways(one))


def _distinct(demands: Iterable[Demands]) -> list[Demands]:
    return list({tuple(map(id, one)): one for one in demands}.values())
