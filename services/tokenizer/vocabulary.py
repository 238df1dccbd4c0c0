"""The vocabulary of a checkpoint: text to token ids and back."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tiktoken

from services.checkpoint.config import load_config
from services.checkpoint.markers import STOPS, Marker
from services.checkpoint.vocabulary import TokenTable, load_tokens
from services.runtime.errors import CheckpointError
from services.tokenizer.invalid import invalid

# The split pattern of the K2 family, tried from left to right (TEMPLATE.md).
SPLIT_PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
PIECE_CHARS = 400_000
RUN_CHARS = 25_000

_WHITE, _OTHER = re.compile(r"\s"), re.compile(r"\S")
# Every run up to the limit in one step of C code; it stands still in front of the first run that is longer.
_SHORT_RUNS = re.compile(rf"(?:\S{{1,{RUN_CHARS}}}+(?!\S)|\s{{1,{RUN_CHARS}}}+(?!\s))*+")


def cut_points(text: str) -> Iterator[int]:
    """Yield the places where the reference cuts text before it encodes it, in order (TEMPLATE.md).

    Every PIECE_CHARS characters, and inside such a piece after RUN_CHARS characters of white space, or of anything
    else, in a row. The parts are encoded on their own, so a cut changes the tokens around it.
    """
    for piece in range(0, len(text), PIECE_CHARS):
        if piece:
            yield piece
        end = min(piece + PIECE_CHARS, len(text))
        if not _may_have_a_long_run(text, piece, end):
            continue
        position = piece
        while (position := _end_of_short_runs(text, position, end)) < end:
            position += RUN_CHARS
            yield position


class Vocabulary:
    """Token ids of one checkpoint. Immutable and safe to share between threads.

    size           number of ids, unused ones included
    context_tokens prompt and completion together
    special_ids    text of a special token to its id
    stop_ids       ids that end an answer, sorted
    revision       digest of everything that decides what text becomes which ids
    """

    def __init__(self, table: TokenTable, *, stop_ids: Iterable[int], context_tokens: int) -> None:
        first_special, named = len(table.ordinary), set(table.special_ids.values())
        reserved = {f"<|reserved_token_{i}|>": i for i in range(first_special, table.size) if i not in named}
        by_id = sorted((token_id, text) for text, token_id in {**table.special_ids, **reserved}.items())
        self.size = table.size
        self.context_tokens = context_tokens
        self.stop_ids = sorted(stop_ids)
        self.special_ids = {text: token_id for token_id, text in by_id}
        self.marker_ids = table.marker_ids
        self.first_special_id = first_special
        self._hidden = table.hidden | set(reserved.values())
        self._encoding = tiktoken.Encoding(
            "moonshard",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks={token: rank for rank, token in enumerate(table.ordinary)},
            special_tokens=self.special_ids,
        )
        self._bytes = [*table.ordinary, *(text.encode() for text in self.special_ids)]
        digest = hashlib.sha256(b"".join(len(token).to_bytes(4, "little") + token for token in self._bytes))
        digest.update(repr(sorted(self._hidden)).encode())
        self.revision = digest.hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return the ids of untrusted text: the text of a special token becomes ordinary tokens."""
        return self._encode(text, special=False)

    def encode_with_special(self, text: str) -> list[int]:
        """Return the ids of trusted text: the text of a special token becomes that token, as in the reference."""
        return self._encode(text, special=True)

    def encode_piece(self, text: str) -> list[int]:
        """Return the same as `encode` for text that is already cut at `cut_points`."""
        return self._encoding.encode_ordinary(text)

    def token_bytes(self, token_ids: Sequence[int], *, skip_special: bool = False) -> list[bytes]:
        """Return the bytes of each token; with `skip_special` none for what readers of plain text should not see."""
        table, hidden = self._bytes, self._hidden if skip_special else frozenset()
        try:
            return [b"" if token_id in hidden else table[token_id] for token_id in token_ids]
        except IndexError:
            outside = next(token_id for token_id in token_ids if token_id >= self.size)
            raise invalid("token_ids", f"{outside} is no token: ids end at {self.size - 1}") from None

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of the tokens; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(token_ids, skip_special=skip_special)).decode(errors="replace")

    def _encode(self, text: str, *, special: bool) -> list[int]:
        token_ids: list[int] = []
        start = 0
        for end in (*cut_points(text), len(text)):
            piece = text[start:end]
            token_ids += self._encoding.encode(piece, allowed_special="all") if special else self.encode_piece(piece)
            start = end
        return token_ids


def load_vocabulary(folder: Path) -> Vocabulary:
    """Return the vocabulary of a checkpoint folder. Raises CheckpointError with file and token that are wrong."""
    config = load_config(folder)
    table = load_tokens(folder, config.text.vocab_size)
    pad_id, placeholder = table.marker_ids[Marker.MEDIA_PAD], config.media_placeholder_token_id
    if placeholder not in (None, pad_id):
        raise CheckpointError(
            f"{folder}: media_placeholder_token_id of config.json is {placeholder}, expected {pad_id}, "
            f"the id of {Marker.MEDIA_PAD.value}"
        )
    stop_ids = config.stop_ids | {table.marker_ids[marker] for marker in STOPS}
    return Vocabulary(table, stop_ids=stop_ids, context_tokens=config.text.max_position_embeddings)


def _may_have_a_long_run(text: str, start: int, end: int) -> bool:
    """Return False where no run is over the limit, in almost no time: such a run holds a whole half of the limit."""
    half = RUN_CHARS // 2
    return any(
        kind.search(text, place, place + half) is None
        for place in range(start, end - half + 1, half)
        for kind in (_WHITE, _OTHER)
    )


def _end_of_short_runs(text: str, start: int, end: int) -> int:
    match = _SHORT_RUNS.match(text, start, end)
    return match.end() if match else start
