"""How the latent KV of one attention process is laid out, and who may exchange it."""

import secrets

import torch

from kernels.reference import latent_fp8
from services.attention.layers import frames
from services.attention.settings import AttentionSettings
from services.checkpoint.block_names import layout_fingerprint
from services.checkpoint.config import TextConfig
from services.checkpoint.placement import layer_ranges


class KvLayout:
    """The form of latent KV that settings and checkpoint give.

    width     of a token in one layer, in numbers of kv_dtype
    kv_dtype  uint8 where latents are in FP8
    """

    def __init__(self, settings: AttentionSettings, config: TextConfig, digest: bytes, dtype: torch.dtype) -> None:
        self._settings = settings
        self._digest = digest
        self._dtype = dtype
        self._ranges = layer_ranges(config.num_hidden_layers, settings.num_shards)
        if settings.kv_dtype == "fp8":
            self.width = latent_fp8.token_bytes(config.kv_lora_rank, config.qk_rope_head_dim)
            self.kv_dtype = torch.uint8
        else:
            self.width, self.kv_dtype = config.latent_dim, dtype

    def layers_of(self, shard: int) -> range:
        return self._ranges[shard]

    def block_bytes(self, num_layers: int) -> int:
        return num_layers * self._settings.block_tokens * self.width * self.kv_dtype.itemsize

    def fingerprint(self, layers: range) -> bytes:
        """Return the name of the form of these layers' latent KV; equal exactly where blocks may be exchanged."""
        settings = self._settings
        return layout_fingerprint(
            checkpoint_digest=self._digest,
            layers=layers,
            # FP8 of a float32 run has other numbers than that of a bfloat16 run, though equal sizes.
            dtype=settings.dtype if settings.kv_dtype == "auto" else f"{settings.kv_dtype} of {settings.dtype}",
            block_tokens=settings.block_tokens,
            latent_dim=self.width,
            latent_norm_eps=settings.latent_norm_eps,
        )

    def hello(self, shard: int, num_blocks: int) -> bytes:
        """Return the body of HELLO to a shard. It names the layers of that shard, so no other shard accepts it."""
        settings = self._settings
        return frames.HELLO.pack(
            secrets.randbits(63),
            num_blocks,
            settings.block_tokens,
            self._dtype.itemsize,
            self.fingerprint(self._ranges[shard]),
        )
