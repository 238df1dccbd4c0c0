"""The tokens of a checkpoint: tiktoken.model and the special tokens of tokenizer_config.json, read and checked once."""

import base64
import binascii
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from services.checkpoint.json_fields import read_json_object
from services.checkpoint.markers import Marker
from services.runtime.errors import CheckpointError

RANKS_FILE: Final = "tiktoken.model"
SPECIAL_FILE: Final = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenTable:
    """The meaning of every id.

    ordinary     bytes of ids 0, 1, 2 ...; all single bytes are among them
    special_ids  text of a named special token to its id; ids in neither are reserved
    hidden       special ids that readers of plain text should not see
    size         number of ids
    """

    ordinary: Sequence[bytes]
    special_ids: Mapping[str, int]
    hidden: frozenset[int]
    size: int

    @cached_property
    def marker_ids(self) -> Mapping[Marker, int]:
        return {marker: self.special_ids[marker.value] for marker in Marker}


def load_tokens(folder: Path, vocab_size: int) -> TokenTable:
    """Read the tokens of the checkpoint in `folder`. Raises CheckpointError with the file and the bad token."""
    ordinary = _read_ranks(folder / RANKS_FILE)
    path = folder / SPECIAL_FILE
    special = _read_special(path)
    _check_special(special, path, range(len(ordinary), vocab_size))
    ids = {text: token_id for token_id, (text, _) in special.items()}
    return TokenTable(ordinary, ids, frozenset(i for i, (_, hidden) in special.items() if hidden), vocab_size)


def _read_ranks(path: Path) -> list[bytes]:
    """Return token bytes by rank; each line of the file has a base64 token and its rank."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a readable file, found: {error.strerror}") from error
    tokens: dict[bytes, None] = {}
    for number, line in enumerate(lines):
        try:
            token, rank = line.split()
            tokens[base64.b64decode(token, validate=True)] = None
            in_order = int(rank) == number and len(tokens) == number + 1
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"{path} line {number + 1}: expected a base64 token and its rank") from error
        if not in_order:
            raise CheckpointError(f"{path} line {number + 1}: expected a new token of rank {number}, found {line!r}")
    # If a single byte is missing, some texts have no ids.
    missing = [byte for byte in range(256) if bytes([byte]) not in tokens]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} single bytes are no tokens, first {missing[0]:#04x}")
    return list(tokens)


def _read_special(path: Path) -> dict[int, tuple[str, bool]]:
    """Return special tokens by id: the text, and whether readers of plain text should not see it."""
    added = read_json_object(path).get("added_tokens_decoder")
    try:
        return {int(key): (str(token["content"]), bool(token["special"])) for key, token in dict(added or {}).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: added_tokens_decoder is not a map of ids to tokens") from error


def _check_special(special: Mapping[int, tuple[str, bool]], path: Path, places: range) -> None:
    texts = Counter(text for text, _ in special.values())
    for marker in Marker:
        if marker.value not in texts:
            raise CheckpointError(f"{path}: the special token {marker.value} is missing")
    for token_id, (text, _) in special.items():
        if token_id not in places:
            raise CheckpointError(f"{path}: id {token_id} of {text} is outside {places.start}..{places.stop - 1}")
        if texts[text] > 1:
            raise CheckpointError(f"{path}: {texts[text]} special tokens are called {text}")
