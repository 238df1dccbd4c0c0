"""What a request forbids beside the form of its answer: tokens, words, and reasoning beyond its budget.

Each restriction takes tokens out of what may come next. Where nothing would be left, the form of the answer wins.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protos import attention_pb2 as pb
from services.attention.constraint.plan import MarkerIds
from services.attention.sampling.on_host import Rule
from services.checkpoint.markers import Marker
from services.checkpoint.vocabulary import TokenTable
from services.runtime.errors import InvalidRequest

Mask = NDArray[np.bool_]  # [vocab_size], true: may come

# So many tokens before its end a thought may be closed, to leave no character incomplete: a token has at least a byte.
LONGEST_REST = 3
# Of a smaller budget too much would be given away.
LEAST_FOR_WHOLE_CHARACTERS = 24


class Follower(Protocol):
    """Something that follows the tokens of a generation and says which may come next."""

    def rule(self) -> Rule | None:
        """For the next token; None if any may come. NumericError if it gives up."""


class Restriction(Protocol):
    """Something that a request forbids."""

    def allowed(self) -> Mask | None:
        """The tokens that may come next; None if it forbids none."""


class AllowedTokens:
    """No other token ever comes."""

    def __init__(self, token_ids: Sequence[int], vocab_size: int) -> None:
        self._mask: Mask = np.zeros(vocab_size, dtype=np.bool_)
        self._mask[list(token_ids)] = True

    def allowed(self) -> Mask | None:
        return self._mask


class BadWords:
    """No sequence of tokens is completed in the answer. A sequence of one token never begins."""

    def __init__(
        self, sequences: Sequence[Sequence[int]], token_ids: Sequence[int], num_prompt: int, vocab_size: int
    ) -> None:
        """`token_ids`  prompt and answer, which grows."""
        self._sequences = [list(sequence) for sequence in sequences]
        self._token_ids = token_ids
        self._num_prompt = num_prompt
        self._vocab_size = vocab_size

    def allowed(self) -> Mask | None:
        banned = [sequence[-1] for sequence in self._sequences if self._begins(sequence[:-1])]
        if not banned:
            return None
        mask: Mask = np.ones(self._vocab_size, dtype=np.bool_)
        mask[banned] = False
        return mask

    def _begins(self, sequence: list[int]) -> bool:
        """Whether the answer ends with these tokens."""
        first = len(self._token_ids) - len(sequence)
        return first >= self._num_prompt and list(self._token_ids[first:]) == sequence


class ThinkingBudget:
    """Reasoning is closed once it has so many tokens, and where a character ends.

    What it says depends on the tokens alone, so it is the same on every replica.
    """

    def __init__(
        self,
        budget: int,
        token_ids: Sequence[int],
        num_prompt: int,
        *,
        ordinary: Sequence[bytes],
        think_end: int,
        leaves: Sequence[int],
        vocab_size: int,
    ) -> None:
        """The prompt ends in open reasoning.

        ordinary   bytes of the tokens that are no markers
        think_end  the marker that closes reasoning; `leaves` are others that end it
        """
        self._budget = budget
        self._early = LONGEST_REST if budget >= LEAST_FOR_WHOLE_CHARACTERS else 0
        self._token_ids = token_ids
        self._num_seen = num_prompt
        self._num_tokens = 0
        self._missing = 0  # bytes of a character that has begun
        self._is_open = True
        self._ordinary = ordinary
        self._ends = {think_end, *leaves}
        self._only_end: Mask = np.zeros(vocab_size, dtype=np.bool_)
        self._only_end[think_end] = True

    def allowed(self) -> Mask | None:
        for token_id in self._token_ids[self._num_seen :]:
            self._follow(token_id)
        self._num_seen = len(self._token_ids)
        if not self._is_open:
            return None
        left = self._budget - self._num_tokens
        return self._only_end if left <= 0 or (left <= self._early and not self._missing) else None

    def _follow(self, token_id: int) -> None:
        if token_id in self._ends:
            self._is_open = False
        if not self._is_open:
            return
        self._num_tokens += 1
        for byte in self._ordinary[token_id] if token_id < len(self._ordinary) else b"":
            self._missing = max(0, self._missing - 1) if 0x80 <= byte < 0xC0 else _num_following(byte)


def _num_following(first: int) -> int:
    """Bytes that follow the first one of a character in UTF-8."""
    return 3 if first >= 0xF0 else 2 if first >= 0xE0 else 1 if first >= 0xC0 else 0


class Restrictions:
    """Makes the restrictions of requests, for one vocabulary."""

    def __init__(self, table: TokenTable, markers: MarkerIds) -> None:
        self._table = table
        self._markers = markers

    def add(
        self, inner: Follower | None, sampling: pb.Sampling, token_ids: Sequence[int], num_prompt: int
    ) -> Follower | None:
        """Return a generation's constraint with what else its request forbids.

        `token_ids` are prompt and answer, which grows. InvalidRequest for tokens outside the vocabulary.
        """
        size = self._table.size
        words = [list(word.token_ids) for word in sampling.bad_words]
        for field, ids in (("allowed_token_ids", sampling.allowed_token_ids), ("bad_words", chain(*words))):
            if any(token_id >= size for token_id in ids):
                raise InvalidRequest(f"{field}: the vocabulary ends at {size - 1}", field=field)
        restrictions: list[Restriction] = []
        if sampling.allowed_token_ids:
            restrictions.append(AllowedTokens(sampling.allowed_token_ids, size))
        if any(words):
            restrictions.append(BadWords([word for word in words if word], token_ids, num_prompt, size))
        if sampling.HasField("max_thinking_tokens") and sampling.constraint.starts_in_reasoning:
            budget = ThinkingBudget(
                sampling.max_thinking_tokens,
                token_ids,
                num_prompt,
                ordinary=self._table.ordinary,
                think_end=self._markers.ids[Marker.THINK_END],
                leaves=[self._markers.ids[Marker.SECTION_BEGIN]],
                vocab_size=size,
            )
            restrictions.append(budget)
        return Restricted(inner, restrictions) if restrictions else inner


class Restricted:
    """A generation's constraint, if it has one, and what else the request forbids."""

    def __init__(self, inner: Follower | None, restrictions: Sequence[Restriction]) -> None:
        self._inner = inner
        self._restrictions = restrictions

    def rule(self) -> Rule | None:
        rule = self._inner.rule() if self._inner is not None else None
        mask = rule.mask if rule is not None else None
        for restriction in self._restrictions:
            allowed = restriction.allowed()
            if allowed is None:
                continue
            both = allowed if mask is None else allowed & mask
            mask = both if both.any() else mask
        if mask is None:
            return None
        return Rule(mask, rule.settle if rule is not None else None)
