"""One step's arithmetic: from a plan to the logits of the generations that get a token."""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.attention.engine.media import media_rows
from services.attention.engine.turns import Chunk
from services.attention.layers.batch import Batch, Row, make_batch, split
from services.attention.layers.formulas import embed, logits
from services.attention.layers.shard import LayerShard, all_of
from services.attention.layers.weights import EndWeights
from services.checkpoint.config import TextConfig
from services.model.device import to_device


class Forward:
    """Runs embedding, every shard's layers, final norm and head. Used on the engine's loop."""

    def __init__(
        self,
        config: TextConfig,
        ends: EndWeights,
        shards: Sequence[LayerShard],
        *,
        dtype: torch.dtype,
        block_tokens: int,
        num_micro_batches: int,
        micro_batch_tokens: int,
    ) -> None:
        self._config = config
        self._ends = ends
        self._shards = shards
        self._dtype = dtype
        self._block_tokens = block_tokens
        self._num_micro_batches = num_micro_batches
        self._micro_batch_tokens = micro_batch_tokens

    async def run(self, step: int, plan: Sequence[Chunk]) -> Tensor:
        """Return logits f32 [rows, vocabulary], by the plan: after each last chunk, then after its drafted tokens."""
        batch = make_batch([_row(chunk) for chunk in plan], self._block_tokens)
        # Below this size two halves cost more than the wait that they hide.
        halves = self._num_micro_batches > 1 and batch.num_tokens >= self._micro_batch_tokens
        parts = split(batch, self._num_micro_batches) if halves else [batch]
        device = self._ends.embedding.device
        token_ids = to_device(batch.token_ids, device)
        hidden = embed(token_ids, self._ends, self._dtype, media_rows(plan, batch.row_starts))
        if len(parts) == 1:
            hidden = await self._run_layers(step, 0, batch, hidden)
        else:
            # While one micro-batch waits for its experts the other computes its attention.
            pieces = hidden.split_with_sizes([part.num_tokens for part in parts])
            work = [self._run_layers(step, i, *piece) for i, piece in enumerate(zip(parts, pieces, strict=True))]
            # All of them, also if one fails: none may write latent KV after the step is over.
            hidden = torch.cat(await all_of(work))
        hidden = to_device(hidden, device)
        self._score_prompts(plan, batch.row_starts.tolist(), hidden)
        return logits(hidden[to_device(batch.logit_rows, device)], self._ends, self._config)

    def _score_prompts(self, plan: Sequence[Chunk], row_starts: Sequence[int], hidden: Tensor) -> None:
        """Score the prompt tokens of this step, where that was asked for."""
        for chunk, start in zip(plan, row_starts, strict=True):
            generation, first = chunk.generation, chunk.generation.num_computed
            if generation.prompt_scores is None or generation.is_past_prompt:
                continue
            for position, count in generation.prompt_scores.pieces(first, chunk.num_tokens):
                rows = hidden[start + position - first :][:count]
                generation.prompt_scores.add(logits(rows, self._ends, self._config), position)

    async def _run_layers(self, step: int, micro_batch: int, batch: Batch, hidden: Tensor) -> Tensor:
        for shard in self._shards:
            hidden = await shard.forward(step, micro_batch, batch, hidden)
        return hidden


def _row(chunk: Chunk) -> Row:
    generation = chunk.generation
    first, last = generation.num_computed, generation.num_computed + chunk.num_tokens
    tokens = [*generation.token_ids[first:last], *chunk.draft]
    num_logits = 1 + len(chunk.draft) if chunk.is_last else 0
    is_generated = generation.is_past_prompt
    prompt = (0, 0) if is_generated else (generation.arrival, generation.num_prompt)
    return Row(tokens, first, generation.block_ids, num_logits, is_generated, *prompt)
