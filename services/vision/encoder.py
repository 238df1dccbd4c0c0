"""Encodes a file's bytes to features in the store, and returns their reference."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from protos.media_pb2 import MediaRef, VideoChunk
from services.runtime.errors import InvalidRequest
from services.vision.batching import Batcher
from services.vision.catalog import Catalog
from services.vision.decoder_process import Kind
from services.vision.decoders import Decoder, DecoderPool, MediaPlan
from services.vision.metrics import CHUNKS, DECODE_SECONDS, MEDIA
from services.vision.preprocess import Pixels


class MediaEncoder:
    """Decodes and computes files that are not in the store; concurrent requests for a file share the work.

    max_media   most files between decoding and store, which bounds the pixels in memory
    max_videos  most videos among these, so that long videos leave decoders for images
    """

    def __init__(
        self, catalog: Catalog, decoders: DecoderPool, batcher: Batcher, *, max_media: int, max_videos: int
    ) -> None:
        self._catalog = catalog
        self._decoders = decoders
        self._batcher = batcher
        self._slots = asyncio.Semaphore(max_media)
        self._video_slots = asyncio.Semaphore(max_videos)
        self._running: dict[bytes, asyncio.Task[tuple[MediaRef, bool]]] = {}

    async def encode(self, kind: Kind, data: bytes | bytearray) -> tuple[MediaRef, bool]:
        """Return the reference, and whether it was cached. Raises InvalidRequest with the reason for a refused file."""
        digest = await asyncio.to_thread(self._catalog.file_digest, kind, data)
        task = self._running.get(digest)
        if task is None:
            task = self._running[digest] = asyncio.create_task(self._find_or_compute(kind, data, digest))
            task.add_done_callback(lambda task: self._ended(digest, task))
        # If a caller leaves, the other callers and the store still get the result.
        return await asyncio.shield(task)

    def _ended(self, digest: bytes, task: "asyncio.Task[tuple[MediaRef, bool]]") -> None:
        del self._running[digest]
        if not task.cancelled():
            task.exception()  # read here too, because all callers may have left

    async def _find_or_compute(self, kind: Kind, data: bytes | bytearray, digest: bytes) -> tuple[MediaRef, bool]:
        ref = await self._catalog.find(digest)
        if ref is not None:
            MEDIA.labels(kind, "cached").inc()
            return ref, True
        try:
            if kind == "image":
                ref = await self._within(self._slots, self._image(data))
            else:
                ref = await self._within(self._video_slots, self._within(self._slots, self._video(data)))
        except InvalidRequest:
            MEDIA.labels(kind, "refused").inc()
            raise
        await self._catalog.put_ref(digest, ref)
        MEDIA.labels(kind, "computed").inc()
        return ref, False

    async def _image(self, data: bytes | bytearray) -> MediaRef:
        async with self._decoders.lease() as decoder:
            plan, pixels = await self._begin(decoder, "image", data)
        return await self._chunk(plan, pixels)

    async def _video(self, data: bytes | bytearray) -> MediaRef:
        chunks: list[VideoChunk] = []
        async with self._decoders.lease() as decoder:
            plan, pixels = await self._begin(decoder, "video", data)
            for planned in plan.chunks:
                if chunks:
                    pixels = await decoder.chunk()
                media = await self._chunk(plan, pixels)
                chunks.append(VideoChunk(prompt_text=planned.prompt_text, media=media))
        return MediaRef(
            digest=self._catalog.video_digest([chunk.media.digest for chunk in chunks]),
            grid_t=sum(chunk.media.grid_t for chunk in chunks),
            grid_h=plan.grid_h,
            grid_w=plan.grid_w,
            num_tokens=sum(chunk.media.num_tokens for chunk in chunks),
            chunks=chunks,
        )

    async def _begin(self, decoder: Decoder, kind: Kind, data: bytes | bytearray) -> tuple[MediaPlan, Pixels]:
        started = time.perf_counter()
        plan = await decoder.plan(kind, data)
        pixels = await decoder.chunk()
        DECODE_SECONDS.labels(kind).observe(time.perf_counter() - started)
        return plan, pixels

    async def _chunk(self, plan: MediaPlan, pixels: Pixels) -> MediaRef:
        digest = await asyncio.to_thread(self._catalog.chunk_digest, pixels)
        known = await self._catalog.has_features(digest)
        if not known:
            await self._catalog.put_features(digest, await self._batcher.features(pixels))
        CHUNKS.labels("store" if known else "computed").inc()
        return MediaRef(
            digest=digest, grid_t=len(pixels), grid_h=plan.grid_h, grid_w=plan.grid_w, num_tokens=plan.num_tokens
        )

    @staticmethod
    async def _within(slots: asyncio.Semaphore, work: Coroutine[Any, Any, MediaRef]) -> MediaRef:
        async with slots:
            return await work
