"""CUDA graphs of decode steps: a step's launches, recorded once for each size and replayed without Python.

A step is padded to the next larger size. Padding rows attend to one token of a block of their own. Only steps without a
wait can be recorded, so experts must be in this process: with remote experts the host has to send tokens and wait in
every layer.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from services.attention.layers.batch import Batch
from services.model.device import to_device

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
BLOCKS = (16, 64, 256, 1024, 4096)  # of the longest context: 1 k to 256 k tokens in blocks of 64

T = TypeVar("T")
Work = Callable[[], Tensor]
"""Launches a step; returns the tensor of its result."""

Recorder = Callable[[Work], Work]
"""Runs work once, records it, and returns a function that replays it."""

Layers = Callable[[Batch, Tensor], Tensor]
"""Takes a batch and hidden states, returns the hidden states after a shard's layers; all on the device."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """A step of one size: the tensors that its replay reads, and the replay."""

    batch: Batch
    hidden: Tensor
    replay: Work


class StepGraphs:
    """The recorded steps of one shard. Owned by the engine's thread; a result is overwritten by the next step.

    hidden_like    [0, hidden], of the device and dtype of hidden states
    scratch_block  index of a block of the cache that no generation has
    """

    def __init__(
        self, layers: Layers, record: Recorder, hidden_like: Tensor, block_tokens: int, scratch_block: int
    ) -> None:
        self._layers = layers
        self._record = record
        self._hidden_like = hidden_like
        self._block_tokens = block_tokens
        self._scratch_block = scratch_block
        self._recorded: dict[tuple[int, int], Recorded] = {}

    def run(self, batch: Batch, hidden: Tensor) -> Tensor | None:
        """Return the hidden states after the layers; None for a step of a form or size that is not recorded.

        batch   on the host
        hidden  on the device
        """
        size = size_of(batch)
        if size is None:
            return None
        padded = pad(batch, *size, self._block_tokens, self._scratch_block)
        recorded = self._recorded.get(size)
        if recorded is None:
            recorded = self._recorded[size] = self._first(padded)
        for target, source in zip(_inputs(recorded.batch), _inputs(padded), strict=True):
            target.copy_(to_device(source, target.device), non_blocking=True)
        recorded.hidden[: batch.num_tokens].copy_(hidden)
        return recorded.replay()[: batch.num_tokens]

    def _first(self, padded: Batch) -> Recorded:
        like = self._hidden_like
        hidden = like.new_zeros(padded.num_tokens, like.shape[1])
        batch = padded.copy_to(like.device)
        return Recorded(batch, hidden, self._record(lambda: self._layers(batch, hidden)))


def record_cuda(work: Work) -> Work:
    """Record work on the current GPU, after a run that compiles kernels and chooses algorithms."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile, for media or the store.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def size_of(batch: Batch) -> tuple[int, int] | None:
    """Return rows and blocks of the smallest size that holds a step; None if it has chunks or is larger than all."""
    if batch.segments or batch.num_decode == 0:
        return None
    rows, blocks = smallest(ROWS, batch.num_decode), smallest(BLOCKS, batch.block_tables.shape[1])
    return None if rows is None or blocks is None else (rows, blocks)


def smallest(sizes: tuple[int, ...], count: int) -> int | None:
    """Return the smallest size that is at least `count`; None if all are smaller."""
    return next((size for size in sizes if size >= count), None)


def pad(batch: Batch, rows: int, blocks: int, block_tokens: int, scratch_block: int) -> Batch:
    """Return a decode step with a wider block table and more rows, whose context is one token of the scratch block."""
    extra = rows - batch.num_decode
    tables = torch.zeros(rows, blocks, dtype=torch.int32)
    tables[: batch.num_decode, : batch.block_tables.shape[1]] = batch.block_tables
    tables[batch.num_decode :, 0] = scratch_block
    return Batch(
        token_ids=_extended(batch.token_ids, extra, 0),
        positions=_extended(batch.positions, extra, 0),
        slots=_extended(batch.slots, extra, scratch_block * block_tokens),
        block_tables=tables,
        context_lens=_extended(batch.context_lens, extra, 1),
        segments=(),
        logit_rows=batch.logit_rows[:0],
        row_starts=batch.row_starts[:0],
    )


def without_waiting(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a step that is recorded must not wait")


def _extended(values: Tensor, extra: int, filling: int) -> Tensor:
    return torch.cat([values, values.new_full((extra,), filling)])


def _inputs(batch: Batch) -> tuple[Tensor, ...]:
    """Return the tensors of a decode step that the layers read."""
    return batch.positions, batch.slots, batch.block_tables, batch.context_lens
