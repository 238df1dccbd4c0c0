"""Features of images and videos: fetched from the store for a generation, put where its placeholder tokens stand."""

import asyncio
from collections.abc import Sequence

import torch
from torch import Tensor

from services.attention.engine.turns import Chunk
from services.checkpoint.block_names import MediaMark
from services.checkpoint.media_names import media_key
from services.model.media_features import features_from_bytes
from services.runtime.blobs import BlobStore
from services.runtime.errors import MediaMissing


class MediaSource:
    """Reads features by digest. Called on the engine's loop, it reads on the loop that the store belongs to.

    model   names the weights that made the features
    width   of a hidden state
    wait_s  how long a store that fails is tried again: no replica can go on without features
    """

    def __init__(
        self, store: BlobStore, model: str, width: int, io_loop: asyncio.AbstractEventLoop, wait_s: float = 0.0
    ) -> None:
        self._store = store
        self._model = model
        self._width = width
        self._io_loop = io_loop
        self._wait_s = wait_s

    async def fetch(self, marks: Sequence[MediaMark]) -> dict[int, Tensor]:
        """Return features [tokens, hidden] by the place of their first token. MediaMissing if one is gone.

        A generation keeps them until their tokens are computed. It has blocks for these tokens, which are several times
        as large, so the block pool bounds this memory too.
        """
        if not marks:
            return {}
        reading = asyncio.run_coroutine_threadsafe(self._read(marks), self._io_loop)
        return await asyncio.wrap_future(reading)

    async def _read(self, marks: Sequence[MediaMark]) -> dict[int, Tensor]:
        num_tokens = {mark.digest: mark.num_tokens for mark in marks}
        blobs = await self._store.get([media_key(self._model, digest) for digest in num_tokens], wait_s=self._wait_s)
        features: dict[bytes, Tensor] = {}
        for (digest, count), blob in zip(num_tokens.items(), blobs, strict=True):
            found = None if blob is None else features_from_bytes(blob, count, self._width)
            if found is not None:
                features[digest] = found
        missing = [digest for digest in num_tokens if digest not in features]
        if missing:
            # The vision service takes a damaged value for a present one until it is deleted.
            await self._store.delete([media_key(self._model, digest) for digest in missing])
            raise MediaMissing(f"features of {len(missing)} of {len(num_tokens)} media are gone, {missing[0].hex()}")
        return {mark.offset: features[mark.digest] for mark in marks}


def marks_to_compute(marks: Sequence[MediaMark], num_computed: int) -> list[MediaMark]:
    """Return the media that have tokens without latent KV."""
    return [mark for mark in marks if mark.offset + mark.num_tokens > num_computed]


def media_rows(plan: Sequence[Chunk], row_starts: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the places of features in the flat tensors of a step, and the features; None if there are none.

    row_starts  flat index of the first token of each chunk
    returns     places [n] i64 and features [n, hidden]
    """
    places: list[Tensor] = []
    features: list[Tensor] = []
    for chunk, row_start in zip(plan, row_starts.tolist(), strict=True):
        generation, first = chunk.generation, chunk.generation.num_computed
        for mark in marks_to_compute(generation.names.media, first):
            begin, end = max(first, mark.offset), min(first + chunk.num_tokens, mark.offset + mark.num_tokens)
            if begin < end:
                places.append(torch.arange(begin, end) + (row_start - first))
                features.append(generation.features[mark.offset][begin - mark.offset : end - mark.offset])
    return (torch.cat(places), torch.cat(features)) if places else None
