"""Drafts from a generation's own context: agents repeat file names, code and tool calls word for word."""

from collections.abc import Sequence
from dataclasses import dataclass

# Lengths of the matches that are looked for, the longest first, and how often the next token was right at the start.
ASSUMED = {12: 0.9, 6: 0.7, 3: 0.4}
# Weight of one token in what is known of a length.
LEARNING = 0.1
# Most tokens of a context that are indexed, and most that one generation indexes between two steps.
MOST_INDEXED = 65_536
INDEXED_AT_ONCE = 1_024


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next, and how likely each is right if those before it are."""

    token_ids: Sequence[int]
    probability: float


class ContextDrafts:
    """Finds what followed when the newest tokens of a generation last stood in its context.

    A match is found by its hash alone: a wrong one costs a draft, never an answer.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        """`token_ids`  prompt and answer, which grows."""
        self._token_ids = token_ids
        self._num_indexed = max(0, len(token_ids) - MOST_INDEXED)
        self._places: dict[int, dict[int, int]] = {length: {} for length in ASSUMED}
        self._right = dict(ASSUMED)
        self._expected: Sequence[int] = ()
        self._expected_by = 0  # length of the match behind it
        self._expected_at = 0

    def find(self, most: int) -> Draft | None:
        """Return at most so many tokens; None without a match. Learns from what came after the last call."""
        self._learn()
        self._index()
        for length, places in self._places.items():
            place = places.get(self._key(len(self._token_ids), length))
            if place is not None:
                self._expected, self._expected_by = self._following(place, max(1, most)), length
                self._expected_at = len(self._token_ids)
                return Draft(self._expected[:most], self._right[length])
        self._expected = ()
        return None

    def _learn(self) -> None:
        for expected, token_id in zip(self._expected, self._token_ids[self._expected_at :], strict=False):
            is_right = token_id == expected
            self._right[self._expected_by] += LEARNING * (is_right - self._right[self._expected_by])
            if not is_right:
                break

    def _index(self) -> None:
        # The newest tokens are looked up before they are indexed, or they would find themselves.
        last = min(len(self._token_ids) - 1, self._num_indexed + INDEXED_AT_ONCE)
        for end in range(self._num_indexed + 1, last + 1):
            old = end - MOST_INDEXED
            for length, places in self._places.items():
                if end >= length:
                    places[self._key(end, length)] = end
                if old >= length and places.get(key := self._key(old, length)) == old:
                    del places[key]
        self._num_indexed = max(self._num_indexed, last)

    def _key(self, end: int, length: int) -> int:
        return hash(tuple(self._token_ids[end - length : end])) if end >= length else -1

    def _following(self, place: int, most: int) -> Sequence[int]:
        """Return the tokens from a place on; what would reach past the end repeats itself."""
        tokens = list(self._token_ids[place : place + most])
        while len(tokens) < most:
            tokens += tokens[: most - len(tokens)]
        return tokens
