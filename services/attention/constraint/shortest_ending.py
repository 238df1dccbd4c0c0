"""The shortest way to end a text that a grammar has begun to check, found by search over bytes.

Cheapest first, where the cost is the number of bytes. Places that go on alike are visited once: in JSON those whose
outline and next bytes are the same, elsewhere those of equal length whose next bytes are the same. What it finds is
an ending in any case, because the grammar's own matcher has followed it to its end; that it is the shortest is meant,
not promised.
"""

import heapq
from typing import Protocol

from services.attention.constraint.json_position import JsonPosition

# Of so many possible bytes most are characters of a free text, which all do the same.
FREE_TEXT = 40
TYPICAL = frozenset(b"a0A !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
NUM_UNTYPICAL = 8
CONTINUATIONS = range(0x80, 0xC0)  # bytes of UTF-8 that begin no character
NUM_CONTINUATIONS = 2


class ByteMatcher(Protocol):
    """A grammar's place in a text, byte by byte."""

    def copy(self) -> "ByteMatcher": ...
    def consume(self, text: bytes) -> bool: ...
    def forced(self) -> bytes: ...
    def next_bytes(self) -> bytes: ...
    @property
    def is_accepting(self) -> bool: ...


def shortest_ending(start: ByteMatcher, position: JsonPosition | None, max_visits: int) -> bytes | None:
    """Bytes after which the text is complete, or None if none is found within `max_visits`.

    position  the place in the text if it is JSON
    """
    heap: list[tuple[int, int, bytes, ByteMatcher, JsonPosition | None]] = []
    heapq.heappush(heap, (0, 0, b"", start.copy(), position.fresh() if position else None))
    seen: set[tuple[object, ...]] = set()
    num_pushed = 0
    for _ in range(max_visits):
        if not heap:
            break
        cost, _, text, matcher, place = heapq.heappop(heap)
        if matcher.is_accepting:
            return text
        branches = [forced] if (forced := matcher.forced()) else []
        if not branches:
            allowed = matcher.next_bytes()
            branches = [bytes([byte]) for byte in _choices(allowed, place)]
            key = (allowed, place.outline, place.in_string) if place else (allowed, cost)
            # Where there is no choice places differ in what comes after.
            if len(branches) > 1 and key in seen:
                continue
            seen.add(key)
        for branch in branches:
            child = matcher if len(branches) == 1 else matcher.copy()
            if child.consume(branch):
                num_pushed += 1
                after = place.after(branch) if place else None
                heapq.heappush(heap, (cost + len(branch), num_pushed, text + branch, child, after))
    return None


def _choices(allowed: bytes, place: JsonPosition | None) -> bytes:
    """The next bytes worth trying."""
    if place and not place.in_string:
        # What is open is closed as soon as it can be, and no space is needed.
        for closer in b"}]":
            if closer in allowed:
                return bytes([closer])
        allowed = allowed.replace(b" ", b"")
    if place and place.in_string and all(byte in CONTINUATIONS for byte in allowed):
        # Inside a character; which one it becomes decides nothing, in a key least of all.
        return allowed[: 1 if len(allowed) == len(CONTINUATIONS) else NUM_CONTINUATIONS]
    if len(allowed) <= FREE_TEXT:
        return allowed
    if place and place.in_string:
        if 0x22 in allowed:
            return b'"'
        allowed = allowed.replace(b"\\", b"")
    return bytes(byte for byte in allowed if byte in TYPICAL) or allowed[:NUM_UNTYPICAL]
