"""Batches of images and video chunks of all requests; the items of a batch have equal numbers of frames."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from services.vision.metrics import BATCH_PATCHES, BATCH_SECONDS
from services.vision.model import Grid, VisionModel
from services.vision.preprocess import Pixels, patchify, value_table


@dataclass(frozen=True, eq=False)
class Item:
    """Pixels [frames, height, width, 3] waiting for the tower, and the future of their features."""

    pixels: Pixels
    grid: Grid
    features: "asyncio.Future[Tensor]"


class Batcher:
    """Owns the queue and the thread in which the model runs. The caller bounds the queue.

    max_patches  most patches of a batch, unless a single item has more
    """

    def __init__(self, model: VisionModel, patch_size: int, max_patches: int) -> None:
        self._model = model
        self._patch_size = patch_size
        self._max_patches = max_patches
        self._table = torch.from_numpy(value_table())
        self._waiting: deque[Item] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vision")

    async def features(self, pixels: Pixels) -> Tensor:
        """Return features [tokens, hidden] of one image or chunk when its batch has been computed."""
        frames, height, width, _ = pixels.shape
        grid = Grid(frames, height // self._patch_size, width // self._patch_size)
        item = Item(pixels, grid, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._wake.set()
        return await item.features

    async def run(self) -> None:
        """Compute batches, endlessly. An error goes to all callers of its batch."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._take()
            if not batch:
                self._wake.clear()
                continue
            started = time.perf_counter()
            computed = loop.run_in_executor(self._thread, self._compute, batch)
            await asyncio.wait([computed])
            for index, item in enumerate(batch):
                if item.features.done():
                    continue
                if (error := computed.exception()) is not None:
                    item.features.set_exception(error)
                else:
                    item.features.set_result(computed.result()[index])
            BATCH_SECONDS.observe(time.perf_counter() - started)
            BATCH_PATCHES.observe(sum(item.grid.num_patches for item in batch))

    def close(self) -> None:
        """End the thread after the current batch."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _take(self) -> list[Item]:
        """Take the oldest item and, in order of arrival, all that fit and have as many frames."""
        batch, left = take_batch([item for item in self._waiting if not item.features.done()], self._max_patches)
        self._waiting = deque(left)
        return batch

    def _compute(self, batch: Sequence[Item]) -> list[Tensor]:
        patches = torch.cat([torch.from_numpy(patchify(item.pixels, self._patch_size)) for item in batch])
        return self._model.encode(self._table[patches.int()], [item.grid for item in batch])


def take_batch(waiting: Sequence[Item], max_patches: int) -> tuple[list[Item], list[Item]]:
    """Return the items to compute now and those that continue to wait."""
    batch: list[Item] = []
    left: list[Item] = []
    num_patches = 0
    for item in waiting:
        fits = (
            num_patches + item.grid.num_patches <= max_patches and item.grid.frames == batch[0].grid.frames
            if batch
            else True
        )
        if fits:
            batch.append(item)
            num_patches += item.grid.num_patches
        else:
            left.append(item)
    return batch, left
