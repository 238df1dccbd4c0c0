"""The vocabulary of a checkpoint: text to token ids and back."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tiktoken

from services.checkpoint.markers import STOPS, Marker
from services.checkpoint.vocabulary import read_ranks, read_special_tokens, read_stop_ids, read_text_size
from services.runtime.errors import CheckpointError
from services.tokenizer.invalid import invalid

# The split pattern of the K2 family, tried from left to right (text-model.md 4.2).
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

# Every run up to the limit in one step of C code; it stands still in front of the first run that is longer.
_SHORT_RUNS = re.compile(rf"(?:\S{{1,{RUN_CHARS}}}+(?!\S)|\s{{1,{RUN_CHARS}}}+(?!\s))*+")


def cut_points(text: str) -> Iterator[int]:
    """Where the reference cuts text before encoding, in increasing order (text-model.md 4.4).

    Every PIECE_CHARS characters, and inside such a piece after RUN_CHARS characters of white space, or of anything
    else, in a row. The parts are encoded on their own, so a cut changes the tokens around it.
    """
    for piece in range(0, len(text), PIECE_CHARS):
        if piece:
            yield piece
        end = min(piece + PIECE_CHARS, len(text))
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

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        special: Mapping[int, tuple[str, bool]],
        *,
        size: int,
        stop_ids: Iterable[int],
        context_tokens: int,
    ) -> None:
        named = {token_id: text for token_id, (text, _) in special.items()}
        unnamed = {i: f"<|reserved_token_{i}|>" for i in range(len(ranks), size) if i not in named}
        self.size = size
        self.context_tokens = context_tokens
        self.stop_ids = sorted(stop_ids)
        self.special_ids = {text: token_id for token_id, text in sorted((named | unnamed).items())}
        self.marker_ids = {marker: self.special_ids[marker.value] for marker in Marker}
        self.first_special_id = len(ranks)
        self._hidden = frozenset(unnamed) | {token_id for token_id, (_, hidden) in special.items() if hidden}
        self._encoding = tiktoken.Encoding(
            "moonshard", pat_str=SPLIT_PATTERN, mergeable_ranks=dict(ranks), special_tokens=self.special_ids
        )
        self._bytes = [*ranks, *(text.encode() for text in self.special_ids)]
        digest = hashlib.sha256(b"".join(len(token).to_bytes(4, "little") + token for token in self._bytes))
        digest.update(repr(sorted(self._hidden)).encode())
        self.revision = digest.hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of untrusted text: the text of a special token becomes ordinary tokens."""
        return self._encode(text, special=False)

    def encode_with_special(self, text: str) -> list[int]:
        """Ids of trusted text: the text of a special token becomes that token, as in the reference."""
        return self._encode(text, special=True)

    def encode_piece(self, text: str) -> list[int]:
        """As `encode` for text that the caller has already cut at `cut_points`."""
        return self._encoding.encode_ordinary(text)

    def token_bytes(self, token_ids: Sequence[int], *, skip_special: bool = False) -> list[bytes]:
        """The bytes of each token; with `skip_special` none for tokens that readers of plain text should not see."""
        table, hidden = self._bytes, self._hidden if skip_special else frozenset()
        try:
            return [b"" if token_id in hidden else table[token_id] for token_id in token_ids]
        except IndexError:
            outside = next(token_id for token_id in token_ids if token_id >= self.size)
            raise invalid("token_ids", f"{outside} is no token: ids end at {self.size - 1}") from None

    def decode(self, token_ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the tokens; bytes that are no UTF-8 become U+FFFD."""
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
    """The vocabulary of the checkpoint in `folder`; CheckpointError names the file and the token that is wrong."""
    ranks = read_ranks(folder / "tiktoken.model")
    path = folder / "tokenizer_config.json"
    special = read_special_tokens(path)
    size = read_text_size(folder, "vocab_size")
    _check_special_tokens(special, path, range(len(ranks), size))
    stop_texts = {marker.value for marker in STOPS}
    stop_ids = read_stop_ids(folder) | {token_id for token_id, (text, _) in special.items() if text in stop_texts}
    if not all(0 <= token_id < size for token_id in stop_ids):
        raise CheckpointError(f"{folder}: the stop tokens {sorted(stop_ids)} are not all below vocab_size {size}")
    context_tokens = read_text_size(folder, "max_position_embeddings")
    return Vocabulary(ranks, special, size=size, stop_ids=stop_ids, context_tokens=context_tokens)


def _check_special_tokens(special: Mapping[int, tuple[str, bool]], path: Path, places: range) -> None:
    texts = Counter(text for text, _ in special.values())
    for marker in Marker:
        if marker.value not in texts:
            raise CheckpointError(f"{path}: the special token {marker.value} is missing")
    for token_id, (text, _) in special.items():
        if token_id not in places:
            raise CheckpointError(f"{path}: id {token_id} of {text} is outside {places.start}..{places.stop - 1}")
        if texts[text] > 1:
            raise CheckpointError(f"{path}: {texts[text]} special tokens are called {text}")


def _end_of_short_runs(text: str, start: int, end: int) -> int:
    match = _SHORT_RUNS.match(text, start, end)
    return match.end() if match else start
