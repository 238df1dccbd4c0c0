"""Log-probabilities of the tokens of a prompt, for clients that compare texts instead of having one written."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from services.attention.sampling.on_host import SampledToken

# Rows of logits that are in memory at once.
PIECE = 64


class PromptScores:
    """The scores of one prompt, in whatever pieces a replica computes it. Owned by the engine's thread."""

    def __init__(self, prompt_ids: Sequence[int], num_top: int) -> None:
        self._prompt_ids = prompt_ids
        self._num_top = num_top
        self._scores: dict[int, SampledToken] = {}  # by the position of the token

    def pieces(self, first: int, num_tokens: int) -> Iterator[tuple[int, int]]:
        """Which logits are wanted after prompt tokens [first, first + num_tokens): (position, how many), in pieces."""
        last = min(first + num_tokens, len(self._prompt_ids) - 1)
        for start in range(first, last, PIECE):
            yield start, min(PIECE, last - start)

    def add(self, logits: Tensor, first: int) -> None:
        """Score the tokens behind position `first`. logits [rows, vocab_size] f32 of that position and those after."""
        following = list(self._prompt_ids[first + 1 : first + 1 + len(logits)])
        totals = logits.double().logsumexp(-1)
        own = logits.gather(1, torch.tensor(following, device=logits.device)[:, None])[:, 0].double() - totals
        top = logits.topk(self._num_top, dim=-1)
        alternatives = (top.values.double() - totals[:, None]).tolist()
        rows = zip(following, own.tolist(), top.indices.tolist(), alternatives, strict=True)
        for position, (token_id, logprob, ids, values) in enumerate(rows, start=first + 1):
            self._scores[position] = SampledToken(token_id, logprob, tuple(zip(ids, values, strict=True)))

    def all(self) -> list[SampledToken]:
        """The scores of all tokens but the first, which nothing predicts."""
        return [self._scores[position] for position in range(1, len(self._prompt_ids))]
