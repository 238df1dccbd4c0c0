"""Keys and values of a prompt's context, kept from chunk to chunk so that each chunk projects only its own tokens."""

from collections.abc import Callable

import torch
from torch import Tensor


class ExpandedContext:
    """The projections of a context's first tokens in one layer.

    capacity  tokens that are kept; later ones are projected again for every chunk
    width     numbers of a token: heads * (nope + v_dim)
    """

    def __init__(self, capacity: int, width: int, dtype: torch.dtype) -> None:
        # The system gives memory when it is written, so a long prompt costs nothing until it is computed.
        self._rows = torch.empty(capacity, width, dtype=dtype)
        self._num_rows = 0

    def extend(self, latents: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the projection [context, width] of a context's latents [context, kv_lora]; valid until the next call.

        project  from latents to keys and values; a row must not depend on the others
        """
        context, capacity = len(latents), len(self._rows)
        known, kept = min(self._num_rows, context), min(capacity, context)
        if known < kept:
            self._rows[known:kept] = project(latents[known:kept])
            self._num_rows = kept
        if kept == context:
            return self._rows[:context]
        whole = self._rows.new_empty(context, self._rows.shape[1])
        whole[:kept] = self._rows
        whole[kept:] = project(latents[kept:])
        return whole
