"""Sizes that follow from the machine: memory of the store and blocks of latent KV."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.checkpoint.kv_room import MIN_BLOCKS, fitting_blocks
from services.checkpoint.memory import find_room

BLOCK_TOKENS = 64
MIN_STORE_BYTES = 256 << 20
# Shares of the memory left by the weights: for the store, and for all attention replicas together.
STORE_SHARE = 1 / 8
KV_SHARE = 1 / 4


@dataclass(frozen=True)
class Sizes:
    """Bytes of Redis, blocks of each attention process, tokens of a whole context."""

    store_bytes: int
    num_blocks: int
    context_tokens: int

    def __str__(self) -> str:
        tokens = self.num_blocks * BLOCK_TOKENS
        return (
            f"Latent KV for {tokens:,} tokens in each attention process (a context has {self.context_tokens:,}), "
            f"{self.store_bytes / 2**20:,.0f} MiB for the store."
        )


def sizes_for(checkpoint: Path, *, num_attention: int, attention_shards: int, dtype_bytes: int) -> Sizes:
    """Return the sizes for this checkpoint on this machine.

    num_attention     number of attention processes, which share the memory
    attention_shards  shards of a replica, which share the layers
    dtype_bytes       bytes of one number of latent KV
    """
    text = _text_config(checkpoint)
    weights_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    left_bytes = max(0, find_room().num_bytes - weights_bytes)
    context_tokens = int(text.get("max_position_embeddings", 0)) or MIN_BLOCKS * BLOCK_TOKENS
    numbers = int(text.get("kv_lora_rank", 512)) + int(text.get("qk_rope_head_dim", 64))
    layers = -(-int(text.get("num_hidden_layers", 61)) // attention_shards)
    block_bytes = BLOCK_TOKENS * layers * numbers * dtype_bytes
    kv_bytes = int(KV_SHARE * left_bytes / num_attention)
    return Sizes(
        store_bytes=max(MIN_STORE_BYTES, int(STORE_SHARE * left_bytes)),
        num_blocks=fitting_blocks(kv_bytes, block_bytes, context_tokens, BLOCK_TOKENS),
        context_tokens=context_tokens,
    )


def _text_config(checkpoint: Path) -> dict[str, Any]:
    """Return config.json's part about the text model; empty for a bad file, which the processes will refuse."""
    try:
        config = json.loads((checkpoint / "config.json").read_bytes())
        text = config.get("text_config", config)
    except (OSError, ValueError, AttributeError):
        return {}
    return text if isinstance(text, dict) else {}
