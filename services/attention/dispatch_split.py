"""Dispatch and combine as arithmetic: which tokens go to which expert shard, and the sum of what comes back."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from services.model.expert_wire import Work


class Part(NamedTuple):
    """What one shard gets of a batch.

    rows  [tokens of the part] i64, their places in the batch; None where all tokens travel
    """

    shard: int
    rows: Tensor | None
    work: Work


class Splitter:
    """Knows the shard of every expert. Each token travels once to each shard that has one of its experts."""

    def __init__(self, placement: Sequence[Sequence[int]]) -> None:
        placed = sorted(expert for shard in placement for expert in shard)
        if placed != list(range(len(placed))):
            raise ValueError(f"a placement must name every expert once, found {placed}")
        self._num_shards = len(placement)
        # One more entry than experts: index -1, "no expert", finds the last one, which is no shard.
        self._shard_of = np.full(len(placed) + 1, -1, dtype=np.int32)
        for shard, expert_ids in enumerate(placement):
            self._shard_of[list(expert_ids)] = shard

    def split(self, work: Work) -> list[Part]:
        """One part for each shard that has at least one of the tokens, by rising shard."""
        if self._num_shards == 1:
            return [Part(0, None, work)]
        ids = work.topk_ids.numpy()
        shard_of = self._shard_of[ids]
        parts = []
        for shard in range(self._num_shards):
            here = shard_of == shard
            touched = here.any(axis=1)
            num_rows = np.count_nonzero(touched)
            if num_rows == 0:
                continue
            local_ids = np.where(here, ids, np.int32(-1))
            if num_rows == len(ids):
                parts.append(Part(shard, None, work._replace(topk_ids=torch.from_numpy(local_ids))))
                continue
            rows = torch.from_numpy(np.flatnonzero(touched))
            hidden, weights = work.hidden.index_select(0, rows), work.topk_weights.index_select(0, rows)
            parts.append(Part(shard, rows, Work(hidden, torch.from_numpy(local_ids[touched]), weights)))
        return parts


def combine(num_tokens: int, hidden_size: int, parts: Sequence[Part], partials: Sequence[Tensor]) -> Tensor:
    """The sum over shards, [tokens, hidden] f32, always in the order of the shards so that it is always the same.

    partials  one [tokens of the part, hidden] f32 for each part
    """
    if len(parts) == 1 and parts[0].rows is None:
        return partials[0]
    total = torch.zeros(num_tokens, hidden_size)
    for part, partial in zip(parts, partials, strict=True):
        if part.rows is None:
            total += partial
        else:
            total.index_add_(0, part.rows, partial)
    return total
