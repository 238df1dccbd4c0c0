"""Grammars over the vocabulary: which tokens may come next, and how a text that was begun can be ended.

llguidance does the matching. Any tokenisation of a text is allowed, not only the usual one: the model chooses.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from services.attention.constraint.json_position import JsonPosition
from services.attention.constraint.json_schemas import (
    UNKNOWN_WEIGHT,
    counts_free_names,
    plain,
    schema_weight,
    without_counts,
)
from services.attention.constraint.shortest_ending import shortest_ending
from services.checkpoint.vocabulary import TokenTable
from services.runtime.errors import InvalidRequest, NumericError

Mask = NDArray[np.bool_]  # [vocab_size], true: may come

# Compact JSON: no white space but one space where people put it, and never more.
JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
# A number or word of JSON that has so many characters is ended as soon as it can be.
MAX_NUMBER_CHARS = 20
MAX_GRAMMAR_BYTES = 256 * 1024
NUM_BYTE_WORDS = 9  # of the mask over the 262 tokens of the byte vocabulary
# Enough for any schema that a person wrote; a search that needs more is given up.
MAX_VISITS = 20_000


class Grammars:
    """Compiles grammars for one vocabulary. Immutable and safe to share between threads; takes a second to build."""

    def __init__(self, table: TokenTable, end_id: int) -> None:
        self.table = table
        self.end_id = end_id
        self.ids = {token: token_id for token_id, token in reversed(list(enumerate(table.ordinary)))}
        self.longest = max(len(token) for token in table.ordinary)
        self.num_openings = max(token.count(b"{") + token.count(b"[") for token in table.ordinary)
        numeric = [token[:1] in b"0123456789.eE+-" and token != b"" for token in table.ordinary]
        self.numeric: Mask = np.zeros(table.size, dtype=np.bool_)
        self.numeric[: len(numeric)] = numeric
        self._tokens = LLTokenizer(TokenizerWrapper(_Tokens(table, end_id)), n_vocab=table.size, eos_token=end_id)
        self._bytes = LLTokenizer("byte")
        self._limits = LLParserLimits(verbose_errors=False)

    def tokenize(self, text: bytes) -> list[int]:
        """Few tokens that make up the text, longest first."""
        token_ids = []
        while text:
            size = next(n for n in range(min(self.longest, len(text)), 0, -1) if text[:n] in self.ids)
            token_ids.append(self.ids[text[:size]])
            text = text[size:]
        return token_ids

    def prefixes(self, text: bytes) -> list[int]:
        """Tokens that the text may begin with."""
        sizes = range(1, min(self.longest, len(text)) + 1)
        return [self.ids[text[:size]] for size in sizes if text[:size] in self.ids]

    def json(self, schema: Mapping[str, Any], field: str, *, loose: bool = False) -> "Grammar":
        """JSON after a schema; InvalidRequest names the field and the keyword that cannot be enforced.

        loose  keywords that the grammar does not know are left out instead
        """
        demanded = without_counts(plain(schema)) if loose else plain(schema)
        if counts_free_names(demanded):
            raise InvalidRequest(f"{field}: minProperties of 2 or more cannot be enforced over free names", field=field)
        text = json.dumps({**demanded, "x-guidance": {**JSON_OPTIONS, "lenient": loose}})
        return self._compile(f"start: %json {text}", field, JsonPosition(), schema_weight(demanded))

    def regex(self, pattern: str, field: str) -> "Grammar":
        """A text that matches as a whole."""
        grammar = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]["lark_grammar"]
        return self._compile(grammar, field, None, UNKNOWN_WEIGHT)

    def lark(self, grammar: str, field: str) -> "Grammar":
        """A text of a Lark grammar, as llguidance understands it."""
        return self._compile(grammar, field, None, UNKNOWN_WEIGHT)

    def choice(self, texts: Sequence[str], field: str) -> "Grammar":
        """One of these texts."""
        if not all(texts) or not texts:
            raise InvalidRequest(f"{field}: expected texts that are not empty", field=field)
        grammar = "start: " + " | ".join(json.dumps(text) for text in texts)
        return self._compile(grammar, field, None, UNKNOWN_WEIGHT)

    def _compile(self, grammar: str, field: str, position: JsonPosition | None, weight: int) -> "Grammar":
        if len(grammar) > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(f"{field}: more than {MAX_GRAMMAR_BYTES} bytes", field=field)
        options = '%llguidance {"no_forcing": true}\n'
        matchers = [LLMatcher(one, options + grammar, limits=self._limits) for one in (self._tokens, self._bytes)]
        for matcher in matchers:
            if matcher.is_error():
                raise InvalidRequest(f"{field}: {_complaint(matcher.get_error())}", field=field)
        start = Matcher(self, matchers[0], Bytes(matchers[1]), position)
        ending = start.ending()
        if ending is None:
            raise InvalidRequest(f"{field}: no text is found that it allows", field=field)
        return Grammar(start, ending, weight * (self.num_openings if position else 1))


@dataclass(frozen=True)
class Grammar:
    """A compiled grammar.

    ending  tokens of the shortest text that is found
    weight  one token never makes the shortest ending longer by more tokens than this
    """

    start: "Matcher"
    ending: Sequence[int]
    weight: int


class Bytes:
    """A place in a text, for the search of endings."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._mask = np.zeros(NUM_BYTE_WORDS, dtype=np.int32)

    def copy(self) -> "Bytes":
        return Bytes(self._matcher.deep_copy())

    def consume(self, text: bytes) -> bool:
        """False: the grammar does not allow it, and this is of no more use."""
        return self._matcher.try_consume_tokens(list(text)) == len(text)

    def forced(self) -> bytes:
        """What comes next in any case."""
        return self._matcher.compute_ff_bytes()

    def next_bytes(self) -> bytes:
        """Every byte that may come next; none where the text can neither end nor go on."""
        if self._matcher.is_stopped():
            return b""
        return bytes(_mask_of(self._matcher, self._mask, 256).nonzero()[0].tolist())

    @property
    def is_accepting(self) -> bool:
        return self._matcher.is_accepting()


class Matcher:
    """A grammar's place in a text. Used by one thread at a time."""

    def __init__(
        self,
        grammars: Grammars,
        tokens: LLMatcher,
        as_bytes: Bytes,
        position: JsonPosition | None,
        ending: bytes | None = None,
    ) -> None:
        self._grammars = grammars
        self._tokens = tokens
        self._bytes = as_bytes
        self._position = position
        self._ending = ending  # of the place before _pending, if one is known
        self._pending = b""  # consumed, but not yet by _bytes

    def copy(self) -> "Matcher":
        """An independent matcher at the same place."""
        new = Matcher(self._grammars, self._tokens.deep_copy(), self._bytes.copy(), self._position, self._ending)
        new._pending = self._pending
        return new

    def consume(self, token_id: int) -> bool:
        """Goes on by a token; False if it is not allowed, and then this is of no more use."""
        if token_id >= len(self._grammars.table.ordinary) or not self._tokens.consume_token(token_id):
            return False
        text = self._grammars.table.ordinary[token_id]
        self._pending += text
        if self._position:
            self._position = self._position.fresh().after(text)
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
        mask = _mask_of(self._tokens, words, self._grammars.table.size)
        mask[self._grammars.end_id] = False
        if self._position and self._position.num_digits >= MAX_NUMBER_CHARS:
            shorter = mask & ~self._grammars.numeric
            if shorter.any() or self.is_accepting:
                return shorter
        return mask

    def ending(self, max_visits: int = MAX_VISITS) -> list[int] | None:
        """Tokens that complete the text, few of them; None if none are found."""
        ending = self._follow()
        if ending is None:
            ending = shortest_ending(self._bytes, self._position, max_visits)
        self._ending = ending
        return None if ending is None else self._grammars.tokenize(ending)

    def _follow(self) -> bytes | None:
        """What is left of the ending that is known, if it still is one."""
        text, self._pending = self._pending, b""
        if text and not self._bytes.consume(text):
            raise NumericError("a grammar allows a token but not its bytes")
        if self._ending is None or not text:
            return self._ending
        if self._ending.startswith(text):
            return self._ending[len(text) :]
        trial = self._bytes.copy()
        return self._ending if trial.consume(self._ending) and trial.is_accepting else None


def _mask_of(matcher: LLMatcher, words: NDArray[np.int32], size: int) -> Mask:
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    if matcher.is_error() and "NoExtension" in matcher.get_error():
        return np.zeros(size, dtype=np.bool_)
    if matcher.is_error():
        raise NumericError(f"the grammar is too complex: {_first_line(matcher.get_error())}")
    return np.unpackbits(words.view(np.uint8), count=size, bitorder="little").view(np.bool_)


def _complaint(message: str) -> str:
    """What the library says of a grammar, without its own places and options."""
    text = _first_line(message).rpartition("failed to compile JSON schema: ")[2]
    if "coerce_one_of" in text:
        return "oneOf cannot be enforced unless its branches exclude each other; use anyOf"
    return text.replace("Unimplemented keys:", "keywords that cannot be enforced:")


def _first_line(message: str) -> str:
    return message.strip().split("\n", maxsplit=1)[0]


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
