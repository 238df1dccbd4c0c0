"""A checkpoint folder with the files of a tokenizer and without weights."""

import dataclasses
import json
from pathlib import Path

from services.checkpoint.config import CONFIG_FILE
from services.local.random_checkpoint.dims import SPECIAL_SLOTS, RandomDims, config_json, tiny_dims
from services.local.random_checkpoint.vocabulary import special_ids, write_small_vocabulary


def write_small_tokenizer(folder: Path, num_ordinary: int, context_tokens: int = 4096) -> None:
    """Write tiktoken.model, tokenizer_config.json and config.json for `num_ordinary` ordinary and 256 special ids."""
    write_small_vocabulary(folder, num_ordinary)
    sizes = {"vocab_size": num_ordinary + SPECIAL_SLOTS, "max_position_embeddings": context_tokens}
    ids = special_ids(num_ordinary)
    token_ids = {
        "bos_token_id": ids["[BOS]"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["[PAD]"],
        "media_placeholder_token_id": ids["<|media_pad|>"],
    }
    config = config_json(RandomDims(dataclasses.replace(tiny_dims().text, **sizes)), token_ids)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
