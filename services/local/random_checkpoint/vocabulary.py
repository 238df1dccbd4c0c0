"""The tokenizer files of a random checkpoint: a small generated vocabulary, or a copy of the real one."""

import base64
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from services.local.random_checkpoint.dims import SPECIAL_SLOTS
from services.runtime.errors import CheckpointError

VOCABULARY_FILE = "tiktoken.model"
CONFIG_FILE = "tokenizer_config.json"

# Each joins two earlier tokens, as byte-pair encoding requires.
COMMON_PIECES = (
    *("  ", "th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "or", "es", "is", "it", "ou", "ing", "the"),
    *(" t", " a", " s", " w", " o", " the", " an", " and", " to", " of", " in", " i", " is", " it", " th", " that"),
    *("ed", "ll", "al", "ar", "le", "st", " b", " m", " c", " f", " h", " p", " d", " l", " n", " g", " e", " y"),
    *(" you", "ver", " w", "as", " was", " for", " be", " on", " re", "ent", "ly", "!\n", ".\n", "\n\n", "ion", "tion"),
)

# Each named token's offset from the end of the ordinary tokens, and whether decoding may skip it.
NAMED_TOKENS = (
    (0, "[BOS]", True),
    (1, "[EOS]", True),
    (2, "<|im_end|>", True),
    (3, "<|im_user|>", True),
    (4, "<|im_assistant|>", True),
    (6, "<|start_header_id|>", True),
    (7, "<|end_header_id|>", True),
    (9, "[EOT]", True),
    (10, "<|im_system|>", True),
    (11, "<|tool_calls_section_begin|>", False),
    (12, "<|tool_calls_section_end|>", False),
    (13, "<|tool_call_begin|>", False),
    (14, "<|tool_call_argument_begin|>", False),
    (15, "<|tool_call_end|>", False),
    (17, "<|im_middle|>", True),
    (18, "<|media_begin|>", True),
    (19, "<|media_content|>", True),
    (20, "<|media_end|>", True),
    (21, "<|media_pad|>", True),
    (22, "<think>", False),
    (23, "</think>", False),
    (254, "[UNK]", True),
    (255, "[PAD]", True),
)


def special_ids(base: int) -> dict[str, int]:
    """Return the ids of the named special tokens if ordinary tokens are 0..base-1."""
    return {name: base + offset for offset, name, _ in NAMED_TOKENS}


def small_vocabulary(base: int) -> list[bytes]:
    """Return `base` tokens by rank: the 256 bytes in GPT-2's order, common English pieces, then pairs of bytes.

    Raises ValueError if `base` is less than 256 or more than there are pairs of bytes.
    """
    if base < 256:
        raise ValueError(f"a vocabulary needs the 256 bytes, {base} tokens are too few")
    tokens = dict.fromkeys(bytes([byte]) for byte in _byte_order())
    pieces = (piece.encode() for piece in COMMON_PIECES)
    for token in itertools.chain(pieces, _byte_pairs()):
        if len(tokens) == base:
            break
        tokens.setdefault(token)
    if len(tokens) < base:
        raise ValueError(f"a vocabulary of pairs of bytes has at most {len(tokens)} tokens, not {base}")
    return list(tokens)


def write_small_vocabulary(folder: Path, base: int) -> None:
    """Write tiktoken.model and tokenizer_config.json for `base` ordinary and 256 special ids."""
    write_vocabulary(folder, small_vocabulary(base))


def write_vocabulary(folder: Path, tokens: Sequence[bytes]) -> None:
    """Write tiktoken.model and tokenizer_config.json for these ordinary tokens, by rank, and 256 special ids."""
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))
    (folder / VOCABULARY_FILE).write_bytes(b"".join(lines))
    (folder / CONFIG_FILE).write_text(json.dumps(_tokenizer_config(len(tokens)), indent=2))


def copy_vocabulary(source: Path, folder: Path) -> int:
    """Copy the tokenizer files of a released checkpoint; return its number of ordinary tokens."""
    for name in (VOCABULARY_FILE, CONFIG_FILE):
        if not (source / name).is_file():
            raise CheckpointError(f"{source / name}: expected a vocabulary to copy, found no such file")
        shutil.copyfile(source / name, folder / name)
    return vocabulary_base(source)


def vocabulary_base(folder: Path) -> int:
    """Return the number of ordinary tokens in a folder's tiktoken.model, which has one a line."""
    return len(_ordinary_tokens(folder))


def token_biases(folder: Path) -> list[float]:
    """Return the bias of each token's logit, by id, for a random head: text is likely, stops rare, markers very rare.

    So random weights produce a long text of varied characters that may stop by itself.
    """
    ordinary = [_text_bias(token) for token in _ordinary_tokens(folder)]
    rare = {"<|im_end|>": -3.0, "</think>": -3.0}
    special = [-15.0] * SPECIAL_SLOTS
    for offset, name, _ in NAMED_TOKENS:
        special[offset] = rare.get(name, -15.0)
    return ordinary + special


def _ordinary_tokens(folder: Path) -> list[bytes]:
    lines = (folder / VOCABULARY_FILE).read_bytes().splitlines()
    return [base64.b64decode(line.split()[0]) for line in lines if line]


def _text_bias(token: bytes) -> float:
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return -3.0
    return 0.0 if text.replace("\n", " ").isprintable() else -5.0


def _tokenizer_config(base: int) -> dict[str, Any]:
    added = {
        str(base + offset): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": special,
        }
        for offset, name, special in NAMED_TOKENS
    }
    roles = ("[BOS]", "[EOS]", "[UNK]", "[PAD]")
    return {
        "added_tokens_decoder": added,
        "additional_special_tokens": [name for _, name, special in NAMED_TOKENS if special and name not in roles],
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "extra_special_tokens": {},
        "model_max_length": int(1e30),
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }


def _byte_order() -> list[int]:
    # GPT-2: printable bytes first, in order, then the rest.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [byte for byte in range(256) if byte not in printable]


def _byte_pairs() -> Iterator[bytes]:
    for first, second in itertools.product(_byte_order(), repeat=2):
        yield bytes([first, second])


assert NAMED_TOKENS[-1][0] == SPECIAL_SLOTS - 1
