"""A batch on its way to the experts: split by shard, and the sum of the answers; in Python, or in native code."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from services.attention.experts.split import Part, combine
from services.wire.frames import Buffer, CallName, encode_request


class Batch(Protocol):
    """One layer of one micro-batch, in parts by shard."""

    @property
    def parts(self) -> Sequence[tuple[int, int]]:
        """(shard, tokens) of each part, by rising shard."""

    def frame(self, index: int, name: CallName) -> Sequence[Buffer]:
        """The request frame of a part."""

    def take(self, index: int, total: Tensor | None) -> None:
        """Keep the sums [tokens of the part, hidden] f64 of a part; None: native code has them."""

    def wait(self) -> None:
        """Sleep for a short while at most, for answers that come sooner than the event loop would see them."""

    def gives_way(self) -> bool:
        """Whether the event loop has waited so long for its turn that the caller must give it one."""

    def result(self) -> Tensor:
        """The sum over shards [tokens, hidden] f32, rounded once; all parts have their sums."""

    def close(self) -> None:
        """Let go of everything; may be called again."""


class PythonBatch:
    """A batch in Python."""

    def __init__(self, num_tokens: int, hidden_size: int, parts: Sequence[Part]) -> None:
        self.parts = [(part.shard, len(part.work.hidden)) for part in parts]
        self._shape = num_tokens, hidden_size
        self._split = parts
        self._partials: list[Tensor | None] = [None] * len(parts)

    def frame(self, index: int, name: CallName) -> Sequence[Buffer]:
        return encode_request(name, self._split[index].work)

    def take(self, index: int, total: Tensor | None) -> None:
        self._partials[index] = total

    def wait(self) -> None:
        """No-op: answers come through the event loop."""

    def gives_way(self) -> bool:
        return False

    def result(self) -> Tensor:
        partials = [partial for partial in self._partials if partial is not None]
        assert len(partials) == len(self._split)
        return combine(*self._shape, self._split, partials) if partials else torch.zeros(self._shape)

    def close(self) -> None:
        """No-op: memory is all there is."""
