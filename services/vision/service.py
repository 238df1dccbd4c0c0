"""VisionService: files come in as streams of bytes, references go out."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc.aio

from protos import vision_pb2 as pb
from protos import vision_pb2_grpc
from services.runtime.errors import InvalidRequest, MoonshardError, Overloaded
from services.vision.decoder_process import Kind
from services.vision.encoder import MediaEncoder
from services.vision.limits import MediaLimits, refusal
from services.vision.metrics import UPLOAD_BYTES

Context = grpc.aio.ServicerContext[Any, Any]
Parts = AsyncIterator[pb.EncodeMediaRequest]

KINDS: dict[int, Kind] = {pb.IMAGE: "image", pb.VIDEO: "video"}


class VisionServicer(vision_pb2_grpc.VisionServiceServicer):
    """Receives files within a bound on all bytes in memory, and passes them to the encoder."""

    def __init__(self, encoder: MediaEncoder, limits: MediaLimits, max_upload_bytes: int) -> None:
        self._encoder = encoder
        self._limits = limits
        self._max_upload_bytes = max_upload_bytes
        self._upload_bytes = 0

    async def Encode(self, requests: Parts, context: Context) -> pb.EncodeMediaResponse:
        try:
            return await self._encode(requests)
        except MoonshardError:
            # A caller that is refused while it sends would get a broken stream instead of the reason.
            async for _ in requests:
                pass
            raise

    async def _encode(self, requests: Parts) -> pb.EncodeMediaResponse:
        start = await anext(requests, pb.EncodeMediaRequest())
        kind = KINDS.get(start.start.kind)
        if kind is None:
            raise InvalidRequest("the first message must be a start with a kind", field="start.kind")
        num_bytes = start.start.num_bytes
        self._limits.check(f"max_{kind}_bytes", num_bytes, "bytes")
        with self._budget(num_bytes):
            ref, cached = await self._encoder.encode(kind, await _receive(requests, num_bytes))
        return pb.EncodeMediaResponse(media=ref, cached=cached)

    @contextmanager
    def _budget(self, num_bytes: int) -> Iterator[None]:
        if self._upload_bytes and self._upload_bytes + num_bytes > self._max_upload_bytes:
            raise Overloaded(f"{self._upload_bytes} bytes of media are in work already", retry_after_s=1.0)
        self._add(num_bytes)
        try:
            yield
        finally:
            self._add(-num_bytes)

    def _add(self, num_bytes: int) -> None:
        self._upload_bytes += num_bytes
        UPLOAD_BYTES.set(self._upload_bytes)


async def _receive(requests: Parts, num_bytes: int) -> bytearray:
    """Receive a file, which must have the announced length."""
    data = bytearray()
    async for request in requests:
        data += request.data
        if len(data) > num_bytes:
            raise InvalidRequest(f"more than the {num_bytes} bytes that were announced", field="start.num_bytes")
    if len(data) < num_bytes:
        raise InvalidRequest(f"{len(data)} of {num_bytes} bytes that were announced", field="start.num_bytes")
    if not data:
        raise refusal("the file is empty")
    return data
