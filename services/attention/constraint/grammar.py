"""Grammars over the vocabulary: which tokens may come next, and how a text that was begun can be completed.

llguidance does the matching. Any tokenisation of a text is allowed, not only the usual one: the model chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from services.attention.constraint.endings import Guide, find_ending
from services.attention.constraint.guides import JsonGuide
from services.attention.constraint.recipes import (
    MAX_VISITS,
    ByteMatcher,
    Recipe,
    byte_tokenizer,
    compiled,
    guide_of,
    mask_of,
)
from services.checkpoint.vocabulary import TokenTable
from services.runtime.errors import NumericError

Mask = NDArray[np.bool_]  # [vocab_size], true: may come

# A number or word of JSON that has so many characters is ended as soon as it can be.
MAX_NUMBER_CHARS = 20


class Grammars:
    """Compiles recipes for one vocabulary. Immutable and safe to share between threads; takes a second to build."""

    def __init__(self, table: TokenTable, end_id: int) -> None:
        self.table = table
        self.end_id = end_id
        self.ids = {token: token_id for token_id, token in reversed(list(enumerate(table.ordinary)))}
        # Of the tokens that begin with these two bytes.
        self._longest: dict[bytes, int] = {}
        for token in table.ordinary:
            self._longest[token[:2]] = max(len(token), self._longest.get(token[:2], 0))
        self.num_openings = max(token.count(b"{") + token.count(b"[") for token in table.ordinary)
        numeric = [token[:1] in b"0123456789.eE+-" and token != b"" for token in table.ordinary]
        self.numeric: Mask = np.zeros(table.size, dtype=np.bool_)
        self.numeric[: len(numeric)] = numeric
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(table, end_id)), n_vocab=table.size, eos_token=end_id)

    def tokenize(self, text: bytes) -> list[int]:
        """Few tokens that make up the text, longest first."""
        token_ids: list[int] = []
        at = 0
        while at < len(text):
            longest = self._longest.get(text[at : at + 2], 1)
            size = next(n for n in range(longest, 0, -1) if n == 1 or text[at : at + n] in self.ids)
            token_ids.append(self.ids[text[at : at + size]])
            at += size
        return token_ids

    def prefixes(self, text: bytes) -> list[int]:
        """Tokens that the text may begin with."""
        sizes = range(1, min(self._longest.get(text[:2], 1), len(text)) + 1)
        return [self.ids[text[:size]] for size in sizes if text[:size] in self.ids]

    def grammar(self, recipe: Recipe) -> "Grammar":
        """The recipe, compiled. Takes as long as the library does."""
        tokens = compiled(self._tokenizer, recipe.grammar)
        as_bytes = ByteMatcher(compiled(byte_tokenizer(), recipe.grammar))
        ending = recipe.ending.encode("latin-1")
        start = Matcher(self, tokens, as_bytes, guide_of(recipe.kind, recipe.source), ending)
        weight = recipe.weight * (self.num_openings if recipe.kind in ("json", "structural_tag") else 1)
        return Grammar(start, self.tokenize(ending), weight)


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar.

    ending  tokens of the shortest text that was found
    weight  one token never makes the shortest ending longer by more tokens than this
    """

    start: "Matcher"
    ending: Sequence[int]
    weight: int


class Matcher:
    """A grammar's place in a text. Used by one thread at a time."""

    def __init__(
        self, grammars: Grammars, tokens: LLMatcher, as_bytes: ByteMatcher, guide: Guide, ending: bytes | None
    ) -> None:
        self._grammars = grammars
        self._tokens = tokens
        self._bytes = as_bytes
        self._guide = guide
        self._ending = ending  # of the place before _pending, if one is known
        self._pending = b""  # consumed, but not yet by _bytes

    def copy(self) -> "Matcher":
        """An independent matcher at the same place."""
        new = Matcher(self._grammars, self._tokens.deep_copy(), self._bytes.copy(), self._guide, self._ending)
        new._pending = self._pending
        return new

    def consume(self, token_id: int) -> bool:
        """Goes on by a token; False if it is not allowed, and then this is of no more use."""
        if token_id >= len(self._grammars.table.ordinary) or not self._tokens.consume_token(token_id):
            return False
        text = self._grammars.table.ordinary[token_id]
        self._pending += text
        self._guide = self._guide.after(text)
        return True

    @property
    def is_accepting(self) -> bool:
        """Whether the text is complete."""
        return self._tokens.is_accepting()

    def mask(self) -> Mask:
        """The tokens that may come next; the end is none of them."""
        if self._tokens.is_stopped() and not self._tokens.is_error():
            return np.zeros(self._grammars.table.size, dtype=np.bool_)  # complete, and cannot go on
        words = np.zeros(-(-self._grammars.table.size // 32), dtype=np.int32)
        mask = mask_of(self._tokens, words, self._grammars.table.size)
        mask[self._grammars.end_id] = False
        if isinstance(self._guide, JsonGuide) and self._guide.place.num_digits >= MAX_NUMBER_CHARS:
            shorter = mask & ~self._grammars.numeric
            if shorter.any() or self.is_accepting:
                return shorter
        return mask

    def ending(self, max_visits: int = MAX_VISITS) -> list[int] | None:
        """Tokens that complete the text, few of them; None if none are found."""
        ending = self._follow()
        if ending is None:
            ending = find_ending(self._bytes, self._guide, max_visits)
        self._ending = ending
        return None if ending is None else self._grammars.tokenize(ending)

    def _follow(self) -> bytes | None:
        """The rest of the ending that is known, if it still is one."""
        text, self._pending = self._pending, b""
        if text and not self._bytes.consume(text):
            raise NumericError("a grammar allows a token but not its bytes")
        if self._ending is None or not text:
            return self._ending
        if self._ending.startswith(text):
            return self._ending[len(text) :]
        trial = self._bytes.copy()
        return self._ending if trial.consume(self._ending) and trial.is_accepting else None


class _Tokens:
    """The vocabulary in the form that llguidance takes."""

    bos_token_id = None

    def __init__(self, table: TokenTable, end_id: int) -> None:
        names = {token_id: text for text, token_id in table.special_ids.items()}
        special_ids = range(len(table.ordinary), table.size)
        self.eos_token_id = end_id
        self.special_token_ids = list(special_ids)
        self.tokens = [*table.ordinary, *(names.get(i, f"<|reserved_token_{i}|>").encode() for i in special_ids)]

    def __call__(self, _: bytes) -> list[int]:
        raise AssertionError("nothing is tokenised: no text is forced")
