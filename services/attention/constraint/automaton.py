"""Automata of regular expressions, and the shortest text that takes several of them to their end."""

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from services.attention.constraint.char_ranges import Ranges
from services.attention.constraint.patterns import (
    Anchor,
    Chars,
    Either,
    Node,
    Repeat,
    UnknownSyntaxError,
    anywhere,
    parse_pattern,
)

MAX_STATES = 10_000
MAX_AT_ONCE = 256
MAX_CACHED_SETS = 5_000
# Characters tried first: none of them needs an escape in JSON.
LIKED = "aA0 b1_-./:@" + "".join(chr(code) for code in range(33, 127) if chr(code) not in 'aA0b1_-./:@"\\')
MAX_TRIED = 64

States = frozenset[int]


class Automaton:
    """Nondeterministic: a place in it is a set of states. Immutable, apart from a cache.

    farthest  characters of the longest of the shortest ways from any state to the end
    tried     a character of each kind that it tells apart
    """

    def __init__(self, node: Node) -> None:
        """UnknownSyntaxError if it has too many states."""
        self._steps: list[list[tuple[Ranges, int]]] = []
        self._free: list[list[int]] = []  # to states that need no character
        self._at_start: dict[int, int] = {}  # the same, at the start of the text only
        self._at_end: dict[int, int] = {}
        first, self._last = self._build(node)
        self.tried = self._choose_tried()
        self._distance = self._distances()
        self.farthest = int(max((one for one in self._distance if one < math.inf), default=0))
        self.start = self._closure([first], at_start=True)
        self._known: dict[States, list[tuple[str, States]]] = {}

    def after(self, states: States, text: str) -> States:
        """Return the place after more text; empty if no match begins so."""
        for char in text:
            code = ord(char)
            states = self._closure(
                to for state in states for ranges, to in self._steps[state] if _contains(ranges, code)
            )
        return states

    def distance(self, states: States) -> float:
        """Return how many characters are missing at least; infinite if nothing leads to the end."""
        return min((self._distance[state] for state in states), default=math.inf)

    def branches(self, states: States) -> list[tuple[str, States]]:
        """Return the places one character further, each with one of its characters."""
        known = self._known.get(states)
        if known is None:
            if len(self._known) >= MAX_CACHED_SETS:
                self._known = {}
            found: dict[States, str] = {}
            for char in self.tried:
                found.setdefault(self.after(states, char), char)
            known = [(char, after) for after, char in found.items() if self.distance(after) < math.inf]
            self._known[states] = known
        return known

    def _choose_tried(self) -> list[str]:
        """One character of each kind that the expression tells apart; of many kinds beyond ASCII only some."""
        sets = {ranges for steps in self._steps for ranges, _ in steps}
        lows = {chr(low) for ranges in sets for low, _ in ranges[:MAX_TRIED] if not 0xD800 <= low <= 0xDFFF}
        kinds: dict[tuple[bool, ...], str] = {}
        for char in [*LIKED, *sorted(lows - set(LIKED))]:
            kinds.setdefault(tuple(_contains(ranges, ord(char)) for ranges in sets), char)
        return list(kinds.values())

    def is_cheap(self, states: States) -> bool:
        """Whether the branches of this place are known, or there are few states to follow."""
        return len(states) <= MAX_AT_ONCE or states in self._known

    def _new(self) -> int:
        if len(self._steps) >= MAX_STATES:
            raise UnknownSyntaxError(f"more than {MAX_STATES} states")
        self._steps.append([])
        self._free.append([])
        return len(self._steps) - 1

    def _build(self, node: Node) -> tuple[int, int]:
        """The states before and after the node."""
        first, last = self._new(), self._new()
        match node:
            case Chars(ranges):
                self._steps[first].append((ranges, last))
            case Anchor(at_start):
                (self._at_start if at_start else self._at_end)[first] = last
            case Either(parts):
                for part in parts:
                    begin, end = self._build(part)
                    self._free[first].append(begin)
                    self._free[end].append(last)
            case Repeat(part, least, most):
                self._repeat(part, least, most, first, last)
            case _:
                at = first
                for part in node.parts:
                    begin, end = self._build(part)
                    self._free[at].append(begin)
                    at = end
                self._free[at].append(last)
        return first, last

    def _repeat(self, part: Node, least: int, most: int | None, first: int, last: int) -> None:
        at = first
        for _ in range(least):
            begin, end = self._build(part)
            self._free[at].append(begin)
            at = end
        self._free[at].append(last)
        if most is None:
            begin, end = self._build(part)
            self._free[at].append(begin)
            self._free[end] += [begin, last]
            return
        for _ in range(most - least):
            begin, end = self._build(part)
            self._free[at].append(begin)
            self._free[end].append(last)
            at = end

    def _closure(self, states: Iterable[int], *, at_start: bool = False) -> States:
        found = set(states)
        waiting = list(found)
        while waiting:
            state = waiting.pop()
            near = self._free[state]
            if at_start and state in self._at_start:
                near = [*near, self._at_start[state]]
            for one in near:
                if one not in found:
                    found.add(one)
                    waiting.append(one)
        return frozenset(found)

    def _distances(self) -> list[float]:
        before: list[list[tuple[int, int]]] = [[] for _ in self._steps]
        for state, steps in enumerate(self._steps):
            for ranges, to in steps:
                if ranges:
                    before[to].append((state, 1))
            for to in self._free[state]:
                before[to].append((state, 0))
        # The end of the text comes only where no character follows.
        ends = {self._last}
        waiting = [self._last]
        while waiting:
            near = waiting.pop()
            for state in [*(at for at, cost in before[near] if cost == 0), *_keys_to(self._at_end, near)]:
                if state not in ends:
                    ends.add(state)
                    waiting.append(state)
        distance = [math.inf] * len(self._steps)
        heap = [(0, state) for state in ends]
        for _, state in heap:
            distance[state] = 0
        while heap:
            far, near = heapq.heappop(heap)
            for state, cost in before[near] if far == distance[near] else ():
                if far + cost < distance[state]:
                    distance[state] = far + cost
                    heapq.heappush(heap, (far + cost, state))
        return distance


def _keys_to(edges: dict[int, int], to: int) -> list[int]:
    return [state for state, then in edges.items() if then == to]


def _contains(ranges: Ranges, code: int) -> bool:
    index = bisect_right(ranges, (code, math.inf)) - 1
    return index >= 0 and code <= ranges[index][1]


@lru_cache(maxsize=1024)
def automaton_of(pattern: str, *, whole: bool) -> Automaton | None:
    """Return the automaton of an expression, None if its syntax is unknown. `whole`: it matches from end to end."""
    try:
        node = parse_pattern(pattern)
        return Automaton(node if whole else anywhere(node))
    except UnknownSyntaxError:
        return None


@dataclass(frozen=True)
class TextDemands:
    """Demands on one text: expressions, and its length in characters."""

    automata: tuple[Automaton, ...] = ()
    least: int = 0
    most: float = math.inf

    def rest(self, begun: str, max_visits: int) -> str | None:
        """Return the shortest text that completes `begun`, None if none is found."""
        places = tuple(one.after(one.start, begun) for one in self.automata)
        heap = [(self._missing(places, len(begun)), 0, "", places)]
        seen: set[tuple[int, tuple[States, ...]]] = set()
        order = 0
        for _ in range(max_visits):
            if not heap or heap[0][0] == math.inf:
                return None
            _, _, text, places = heapq.heappop(heap)
            size = len(begun) + len(text)
            if self._missing(places, size) == 0 and size <= self.most:
                return text
            key = (min(size, self.least) if self.most == math.inf else size), places
            if key in seen or size >= self.most:
                continue
            seen.add(key)
            if not all(one.is_cheap(at) for one, at in zip(self.automata, places, strict=True)):
                return None
            for char, after in self._branches(places):
                order += 1
                missing = self._missing(after, size + 1)
                heapq.heappush(heap, (len(text) + 1 + missing, -order, text + char, after))
        return None

    def _missing(self, places: Sequence[States], size: int) -> float:
        far = [one.distance(at) for one, at in zip(self.automata, places, strict=True)]
        return max(0, self.least - size, *far)

    def _branches(self, places: tuple[States, ...]) -> list[tuple[str, tuple[States, ...]]]:
        if not self.automata:
            return [("a", ())]
        if len(self.automata) == 1:
            return [(char, (after,)) for char, after in self.automata[0].branches(places[0])]
        # A kind of one automaton may be two kinds of another.
        found: dict[tuple[States, ...], str] = {}
        for char in [*LIKED, *(char for one in self.automata for char in one.tried)]:
            after = tuple(one.after(at, char) for one, at in zip(self.automata, places, strict=True))
            found.setdefault(after, char)
        return [(char, after) for after, char in found.items()]
