"""The files of a checkpoint that concern text: vocabulary, special tokens, stop tokens, context length."""

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.runtime.errors import CheckpointError


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes to rank from tiktoken.model: one base64 token and its rank per line.

    Raises CheckpointError unless the ranks are 0, 1, 2 ... and every single byte is a token: without it some text
    would have no ids.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines()):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"{path} line {number + 1}: expected a base64 token and its rank") from error
        if int(rank) != number or len(ranks) != number + 1:
            raise CheckpointError(f"{path} line {number + 1}: expected a new token of rank {number}, found {line!r}")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} single bytes are no tokens, first {missing[0]:#04x}")
    return ranks


def read_special_tokens(path: Path) -> dict[int, tuple[str, bool]]:
    """Special tokens of tokenizer_config.json: id to (text, whether readers of plain text should not see it)."""
    added = read_json(path).get("added_tokens_decoder")
    try:
        return {int(key): (str(token["content"]), bool(token["special"])) for key, token in dict(added or {}).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: added_tokens_decoder is not a map of ids to tokens") from error


def read_stop_ids(folder: Path) -> set[int]:
    """The `eos_token_id` of config.json, its text_config and generation_config.json: each a number or a list."""
    config = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    holders = [config, config.get("text_config", {}), read_json(generation) if generation.exists() else {}]
    found: set[int] = set()
    for value in (holder.get("eos_token_id") for holder in holders):
        token_ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token_id, int) for token_id in token_ids):
            raise CheckpointError(f"{folder}: eos_token_id is {value!r}, expected ids")
        found.update(token_ids)
    return found


def read_text_size(folder: Path, name: str) -> int:
    """A size of text_config in config.json, for example `vocab_size`."""
    path = folder / "config.json"
    text_config = read_json(path).get("text_config")
    value = text_config.get(name) if isinstance(text_config, dict) else None
    if not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"{path}: text_config.{name} is {value!r}, expected a positive number")
    return value


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object from a file of the checkpoint, or CheckpointError."""
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
