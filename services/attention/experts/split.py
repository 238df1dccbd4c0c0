"""Dispatch and combine as arithmetic: the split of tokens over expert shards, and the sum of their answers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.interface import RoutedTokens


class Part(NamedTuple):
    """One shard's part of a batch.

    rows  [tokens of the part] i64, their places in the batch; None where all tokens travel
    """

    shard: int
    rows: Tensor | None
    work: RoutedTokens


class Splitter:
    """Split a batch over the shards: each token travels once to each shard that has one of its experts."""

    def __init__(self, placement: Sequence[Sequence[int]]) -> None:
        placed = sorted(expert for shard in placement for expert in shard)
        if placed != list(range(len(placed))):
            raise ValueError(f"a placement must name every expert once, found {placed}")
        # For each shard the id of every expert that it has, -1 for all others. One more entry than experts: index -1,
        # "no expert", finds the last one.
        self._own_id = np.full((len(placement), len(placed) + 1), -1, dtype=np.int32)
        for shard, expert_ids in enumerate(placement):
            self._own_id[shard, list(expert_ids)] = list(expert_ids)

    def split(self, work: RoutedTokens) -> list[Part]:
        """One part for each shard that has at least one of the tokens, by rising shard."""
        if len(self._own_id) == 1:
            return [Part(0, None, work)]
        own_ids = self._own_id.take(work.topk_ids.numpy(), axis=1)  # [shards, tokens, top_k]
        touched: NDArray[np.bool_] = np.asarray((own_ids >= 0).any(axis=2))
        parts = []
        for shard, num_rows in enumerate(touched.sum(axis=1).tolist()):
            if num_rows == own_ids.shape[1]:
                parts.append(Part(shard, None, work._replace(topk_ids=torch.from_numpy(own_ids[shard]))))
            elif num_rows:
                rows = torch.from_numpy(np.flatnonzero(touched[shard]))
                ids = torch.from_numpy(own_ids[shard, touched[shard]])
                hidden, weights = work.hidden.index_select(0, rows), work.topk_weights.index_select(0, rows)
                parts.append(Part(shard, rows, RoutedTokens(hidden, ids, weights)))
        return parts


def combine(num_tokens: int, hidden_size: int, parts: Sequence[Part], partials: Sequence[Tensor]) -> Tensor:
    """Return the sum over shards, [tokens, hidden] f32: exact until its only rounding, so the same for every placement.

    partials  one [tokens of the part, hidden] f64 for each part
    """
    total = torch.zeros(num_tokens, hidden_size, dtype=torch.float64)
    for part, partial in zip(parts, partials, strict=True):
        if part.rows is None:
            total += partial
        else:
            total.index_add_(0, part.rows, partial)
    return total.float()
