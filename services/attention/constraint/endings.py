"""How a text that a grammar has begun to check can be completed with few bytes.

A guide that knows the grammar's source proposes how to go on, best first; the grammar's own matcher checks every
proposal. Where no proposal leads to the end, the matcher alone is searched byte by byte. Either way the ending that
is found is one: the matcher has followed it.
"""

import heapq
from collections.abc import Sequence
from typing import Protocol

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


class Guide(Protocol):
    """A place in a text, by the source of the grammar. Immutable; inherited for `key` and `is_between`."""

    def after(self, text: bytes) -> "Guide":
        """The place after more text."""

    def proposals(self) -> Sequence[bytes]:
        """Texts to go on with, the best first; none if the source says nothing here."""

    def narrowed(self, allowed: bytes) -> bytes:
        """Those of the possible next bytes that are worth a search."""

    @property
    def key(self) -> object:
        """Equal for places that go on alike if the same bytes may come next; None if that says too little."""
        return None

    @property
    def is_between(self) -> bool:
        """Whether no string or number is in hand, so that proposals may help again."""
        return False


class Unguided(Guide):
    """Nothing but the matcher is known. `literals`: bytes that stand in the grammar's source."""

    def __init__(self, literals: bytes = b"") -> None:
        self._tried = TYPICAL | frozenset(literals)

    def after(self, text: bytes) -> Guide:
        return self

    def proposals(self) -> Sequence[bytes]:
        return ()

    def narrowed(self, allowed: bytes) -> bytes:
        if len(allowed) <= FREE_TEXT:
            return allowed
        return bytes(byte for byte in allowed if byte in self._tried) or allowed[:NUM_UNTYPICAL]


def find_ending(start: ByteMatcher, guide: Guide, max_visits: int) -> bytes | None:
    """Return bytes that complete the text, or None if none are found within `max_visits` of each kind.

    The string or number in hand may be all that the guide does not understand, so its end is searched for first.
    """
    proposed = propose_ending(start, guide, max_visits)
    if proposed is not None:
        return proposed
    hand = None if guide.is_between else search_ending(start, guide, max_visits, only_hand=True)
    if hand is not None and (after := start.copy()).consume(hand):
        rest = propose_ending(after, guide.after(hand), max_visits)
        if rest is not None:
            return hand + rest
    return search_ending(start, guide, max_visits)


def propose_ending(start: ByteMatcher, guide: Guide, max_visits: int) -> bytes | None:
    """Follow the guide's proposals: the best first, the next one where the matcher refuses it."""
    if start.is_accepting:
        return b""
    waiting = [(start, guide, b"", piece) for piece in reversed(_proposals(start, guide))]
    for _ in range(max_visits):
        if not waiting:
            return None
        matcher, at, text, piece = waiting.pop()
        child = matcher.copy()
        if not child.consume(piece):
            continue
        if child.is_accepting:
            return text + piece
        after = at.after(piece)
        waiting += [(child, after, text + piece, further) for further in reversed(_proposals(child, after))]
    return None


def _proposals(matcher: ByteMatcher, guide: Guide) -> Sequence[bytes]:
    forced = matcher.forced()
    return [forced] if forced else guide.proposals()


def search_ending(start: ByteMatcher, guide: Guide, max_visits: int, *, only_hand: bool = False) -> bytes | None:
    """Search by the matcher alone, cheapest first, where the cost is the number of bytes.

    only_hand  an end of the string or number in hand is enough

    Places of equal key whose next bytes are the same are visited once, in a free text those of equal length.
    """
    heap: list[tuple[int, int, bytes, ByteMatcher, Guide]] = [(0, 0, b"", start.copy(), guide)]
    seen: set[tuple[object, ...]] = set()
    num_pushed = 0
    for _ in range(max_visits):
        if not heap:
            break
        cost, _, text, matcher, at = heapq.heappop(heap)
        if matcher.is_accepting or (only_hand and at.is_between):
            return text
        branches = [forced] if (forced := matcher.forced()) else []
        if not branches:
            allowed = matcher.next_bytes()
            branches = [bytes([byte]) for byte in at.narrowed(allowed)]
            key = (allowed, cost if at.key is None else at.key)
            # Where there is no choice places differ in what comes after.
            if len(branches) > 1 and key in seen:
                continue
            seen.add(key)
        for branch in branches:
            child = matcher if len(branches) == 1 else matcher.copy()
            if child.consume(branch):
                num_pushed += 1
                heapq.heappush(heap, (cost + len(branch), num_pushed, text + branch, child, at.after(branch)))
    return None
