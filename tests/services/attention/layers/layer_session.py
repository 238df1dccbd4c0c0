"""A checkpoint's layers with caches of their own and no engine: what a test of the layers drives."""

import asyncio
import dataclasses
import random

import torch

from services.attention.experts.experts import LocalExperts
from services.attention.layers.batch import Row, make_batch, split
from services.attention.layers.formulas import embed, forward_layers, logits
from services.attention.layers.weights import load_ends, load_layers
from services.local.random_checkpoint.dims import RandomDims, tiny_dims
from services.model.checkpoint import Checkpoint
from services.model.expert_shard import load_expert_shard
from tests.reference.model import ReferenceModel

BLOCK_TOKENS = 16
NUM_BLOCKS = 64


class AwayExperts(LocalExperts):
    """Experts that answer after a few turns of the loop, each call after another number, and remember the calls."""

    def __init__(self, shard) -> None:
        super().__init__(shard)
        self.calls = []

    def dispatch(self, step, layer, micro_batch, hidden, topk_ids, topk_weights):
        self.calls.append((step, layer, micro_batch, len(hidden)))
        total = super().dispatch(step, layer, micro_batch, hidden, topk_ids, topk_weights)
        return self._later(total, turns=(3 * layer + 5 * micro_batch) % 4)

    async def _later(self, total, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        return await total


class Model:
    """A checkpoint, loaded as attention shards with their caches, and its reference."""

    def __init__(self, folder, dtype=torch.float32, latent_norm_eps=1e-6) -> None:
        self.checkpoint = Checkpoint(folder)
        self.config = self.checkpoint.config.text
        self.dtype, self.latent_norm_eps = dtype, latent_norm_eps
        self.ends = load_ends(self.checkpoint)
        self.layers = load_layers(self.checkpoint, range(self.config.num_hidden_layers))
        self.experts = AwayExperts(load_expert_shard(self.checkpoint, range(self.config.n_routed_experts)))
        self.reference = ReferenceModel(folder, dtype=dtype, latent_norm_eps=latent_norm_eps)

    def session(self, **how) -> "Session":
        return Session(self, **how)


class Session:
    """Caches full of NaN, and the steps that fill them. `shard_sizes` are the layers of each shard."""

    def __init__(self, model, shard_sizes=None, num_micro_batches=1, seed=0) -> None:
        self.model, self.num_micro_batches, self.step = model, num_micro_batches, 0
        self.shards, first = [], 0
        for size in shard_sizes or [len(model.layers)]:
            shape = NUM_BLOCKS, size, BLOCK_TOKENS, model.config.latent_dim
            self.shards.append((model.layers[first : first + size], torch.full(shape, torch.nan, dtype=model.dtype)))
            first += size
        assert first == len(model.layers)
        self.free_blocks = list(range(NUM_BLOCKS))
        random.Random(seed).shuffle(self.free_blocks)

    def generation(self, token_ids) -> "Gen":
        return Gen(self, list(token_ids))

    def run(self, rows) -> torch.Tensor:
        """Logits of the rows that want them."""
        batch = make_batch(rows, BLOCK_TOKENS)
        hidden = asyncio.run(self._forward(split(batch, self.num_micro_batches)))
        self.step += 1
        return logits(hidden[batch.logit_rows], self.model.ends, self.model.config)

    async def _forward(self, parts) -> torch.Tensor:
        return torch.cat(await asyncio.gather(*(self._part(index, part) for index, part in enumerate(parts))))

    async def _part(self, micro_batch, batch) -> torch.Tensor:
        model = self.model
        hidden = embed(batch.token_ids, model.ends, model.dtype)
        for layers, cache in self.shards:
            hidden = await forward_layers(
                hidden, batch, layers, cache, model.config, model.experts,
                step=self.step, micro_batch=micro_batch, latent_norm_eps=model.latent_norm_eps,
            )  # fmt: skip
        return hidden


class Gen:
    """A generation of a session: its tokens, its blocks, and how much of it is computed."""

    def __init__(self, session, token_ids) -> None:
        self.session, self.token_ids, self.num_computed, self.block_ids = session, token_ids, 0, []

    def next_row(self, num_tokens, is_generated=None) -> Row:
        """The next tokens; one alone counts as generated unless said."""
        first, last = self.num_computed, self.num_computed + num_tokens
        while len(self.block_ids) * BLOCK_TOKENS < last:
            self.block_ids.append(self.session.free_blocks.pop())
        self.num_computed = last
        tokens, num_logits = self.token_ids[first:last], int(last == len(self.token_ids))
        is_generated = num_tokens == 1 if is_generated is None else is_generated
        return Row(tokens, first, self.block_ids, num_logits, is_generated)

    def logits_by_chunks(self, sizes) -> torch.Tensor:
        """Computes the tokens in chunks of these sizes, the last one repeatedly; logits after the last token."""
        sizes = list(sizes)
        while self.num_computed < len(self.token_ids):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            out = self.session.run([self.next_row(min(size, len(self.token_ids) - self.num_computed))])
        return out[0]


def text(seed: int, num_tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_tokens,), generator=generator).tolist()


def other_dims() -> RandomDims:
    """What tiny does not have: two dense layers, expert groups, two shared experts, no YaRN, odd sizes."""
    tiny = tiny_dims().text
    return RandomDims(
        dataclasses.replace(
            tiny,
            hidden_size=96,
            num_hidden_layers=5,
            num_attention_heads=3,
            q_lora_rank=40,
            kv_lora_rank=24,
            qk_nope_head_dim=12,
            qk_rope_head_dim=6,
            v_head_dim=20,
            intermediate_size=72,
            first_k_dense_replace=2,
            n_routed_experts=12,
            num_experts_per_tok=3,
            n_shared_experts=2,
            n_group=4,
            topk_group=2,
            norm_topk_prob=False,
            rope_scaling=None,
        )
    )
