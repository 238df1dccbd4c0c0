"""Speculation: tokens that a generation's context suggests are verified in the step that draws the one before them.

Nothing changes but the time. A drafted token is a row of the decode form, as it is without drafts; the rows' logits are
drawn from one after the other, each by the rules and the random number of its own position, until one disagrees.
"""

from collections.abc import Sequence
from dataclasses import replace

from services.attention.engine.draft_lengths import DraftLengths
from services.attention.engine.drafts import ContextDrafts
from services.attention.engine.generation import Generation
from services.attention.engine.turns import Chunk
from services.attention.metrics import DRAFT_SECONDS_SAVED, DRAFT_TOKENS


class Speculation:
    """Adds drafts to the streams of a step. Owned by the engine's thread."""

    def __init__(self, most_tokens: int, block_tokens: int) -> None:
        """`most_tokens`  most drafted tokens of one generation in a step; 0: no drafts."""
        self._most_tokens = most_tokens
        self._block_tokens = block_tokens
        self._lengths = DraftLengths()

    def add(self, plan: Sequence[Chunk], room: int) -> list[Chunk]:
        """Return the plan with at most `room` drafted tokens. Beside prompts nothing is drafted."""
        if not self._most_tokens or not all(chunk.generation.is_stream for chunk in plan):
            return list(plan)
        found = [self._find(chunk.generation) for chunk in plan]
        lengths = self._lengths.choose(len(plan), [(probability, len(tokens)) for tokens, probability in found])
        drafted = []
        for chunk, (tokens, _), length in zip(plan, found, lengths, strict=True):
            draft = tokens[: max(0, min(length, room))]
            room -= len(draft)
            drafted.append(replace(chunk, draft=draft) if draft else chunk)
        return drafted

    def learn(self, plan: Sequence[Chunk], num_generated: int, seconds: float) -> None:
        """Take note of what a step gave and cost."""
        if not self._most_tokens or any(chunk.num_tokens > 1 for chunk in plan):
            return
        num_drafted = sum(len(chunk.draft) for chunk in plan)
        without_s = self._lengths.learn(len(plan), num_drafted, seconds)
        if num_drafted:
            num_accepted = max(0, num_generated - len(plan))
            DRAFT_TOKENS.labels("accepted").inc(num_accepted)
            DRAFT_TOKENS.labels("rejected").inc(num_drafted - num_accepted)
            DRAFT_SECONDS_SAVED.inc(without_s * num_generated / len(plan) - seconds)

    def _find(self, generation: Generation) -> tuple[Sequence[int], float]:
        """Return what a draft may have, within the answer's budget and the blocks that the generation has anyway."""
        if generation.hand_over:
            # Nothing but its first token is wanted here.
            return (), 0.0
        if generation.drafts is None:
            generation.drafts = ContextDrafts(generation.token_ids)
        num_known = len(generation.token_ids)
        most = min(
            self._most_tokens,
            generation.max_tokens - num_known - 1,
            len(generation.block_ids) * self._block_tokens - num_known,
        )
        draft = generation.drafts.find(max(0, most))
        return (draft.token_ids, draft.probability) if draft is not None else ((), 0.0)
