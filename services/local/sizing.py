"""Sizes that follow from the machine: memory of the store, blocks of latent KV, time limit of a start."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BLOCK_TOKENS = 64
MIN_BLOCKS = 256
MIN_STORE_BYTES = 256 << 20
# Shares of the memory left by the weights: for the store, and for all attention replicas together.
STORE_SHARE = 1 / 8
KV_SHARE = 1 / 4
# Rate of a slow disk or network volume; other cold starts are faster.
LOAD_BYTES_PER_S = 50e6
START_BASE_S = 300.0
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Sizes:
    """Bytes of Redis, blocks and tokens of each attention process, longest seconds of a start."""

    store_bytes: int
    num_blocks: int
    context_tokens: int
    start_s: float

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
    left_bytes = max(0, memory_bytes() - weights_bytes)
    context_tokens = int(text.get("max_position_embeddings", 0)) or MIN_BLOCKS * BLOCK_TOKENS
    numbers = int(text.get("kv_lora_rank", 512)) + int(text.get("qk_rope_head_dim", 64))
    layers = -(-int(text.get("num_hidden_layers", 61)) // attention_shards)
    block_bytes = BLOCK_TOKENS * layers * numbers * dtype_bytes
    fitting = int(KV_SHARE * left_bytes / num_attention) // block_bytes
    # A replica on one machine makes no use of more than four whole contexts.
    most = 4 * -(-context_tokens // BLOCK_TOKENS)
    return Sizes(
        store_bytes=max(MIN_STORE_BYTES, int(STORE_SHARE * left_bytes)),
        num_blocks=max(MIN_BLOCKS, min(fitting, most)),
        context_tokens=context_tokens,
        start_s=START_BASE_S + weights_bytes / LOAD_BYTES_PER_S,
    )


def memory_bytes() -> int:
    """Return the memory for new processes: the machine's available memory, but no more than the cgroup allows."""
    available = int(psutil.virtual_memory().available)
    for path in CGROUPS:
        try:
            available = min(available, int(path.read_text()))
        except (OSError, ValueError):  # there is no such group, or its limit is "max"
            continue
    return available


def _text_config(checkpoint: Path) -> dict[str, Any]:
    """Return config.json's part about the text model; empty for a bad file, which the processes will refuse."""
    try:
        config = json.loads((checkpoint / "config.json").read_bytes())
        text = config.get("text_config", config)
    except (OSError, ValueError, AttributeError):
        return {}
    return text if isinstance(text, dict) else {}
