"""The tokens of a checkpoint as bytes, for what works on token ids; text to ids is the tokenizer service's."""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.runtime.errors import CheckpointError


@dataclass(frozen=True)
class TokenTable:
    """What each id stands for.

    ordinary     bytes of ids 0, 1, 2 ...; all single bytes are among them
    special_ids  text of a named special token to its id; ids in neither are reserved
    size         number of ids
    """

    ordinary: Sequence[bytes]
    special_ids: Mapping[str, int]
    size: int

    def special_id(self, text: str) -> int:
        """The id of a special token, or CheckpointError."""
        if text not in self.special_ids:
            raise CheckpointError(f"tokenizer_config.json: the special token {text} is missing")
        return self.special_ids[text]


def load_tokens(folder: Path, vocab_size: int) -> TokenTable:
    """The tokens of the checkpoint in `folder`; CheckpointError names the file and what is wrong in it."""
    ordinary = _read_ordinary(folder / "tiktoken.model")
    path = folder / "tokenizer_config.json"
    try:
        added = json.loads(path.read_bytes())["added_tokens_decoder"]
        special_ids = {str(token["content"]): int(key) for key, token in added.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected added_tokens_decoder, ids to tokens") from error
    outside = [text for text, token_id in special_ids.items() if not len(ordinary) <= token_id < vocab_size]
    if outside:
        raise CheckpointError(f"{path}: {outside[0]} is outside {len(ordinary)}..{vocab_size - 1}")
    return TokenTable(ordinary, special_ids, vocab_size)


def _read_ordinary(path: Path) -> list[bytes]:
    try:
        lines = [line.split() for line in path.read_bytes().splitlines()]
        tokens = [base64.b64decode(token, validate=True) for token, _ in lines]
        in_order = all(int(rank) == number for number, (_, rank) in enumerate(lines))
    except (OSError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{path}: expected a base64 token and its rank on every line") from error
    if not in_order or not {bytes([byte]) for byte in range(256)} <= set(tokens):
        raise CheckpointError(f"{path}: expected ranks 0, 1, 2 ... and all single bytes among the tokens")
    return tokens
