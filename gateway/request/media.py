"""Images and videos of a request: from what the client sent to references that tokenizer and engines understand."""

import asyncio
import base64
import binascii
from collections.abc import Mapping
from functools import partial

from gateway.cluster.cluster import Cluster
from gateway.cluster.replica import Replica
from gateway.http.request_context import RequestContext
from gateway.request.chat_model import Conversation, Media, RawPrompts
from gateway.request.fetch import MediaFetcher
from gateway.request.files import FileDesk
from gateway.settings import GatewaySettings
from protos import vision_pb2 as pb
from protos.media_pb2 import MediaRef
from services.runtime.errors import InvalidRequest, NotFound

KINDS = {"image": pb.IMAGE, "video": pb.VIDEO}
PIECE_BYTES = 1 << 20
# At once for one request; the others wait.
MAX_AT_ONCE = 4
ASCII_SPACE = b" \t\r\n\f\v"

MediaRefs = Mapping[str, MediaRef]
"""References by kind and URL, see `media_key`."""


def media_key(media: Media) -> str:
    """Return the key under which equal media of a request are one."""
    return f"{media.kind} {media.url}"


class MediaDesk:
    """Lets vision replicas encode media. Keeps nothing: a replica knows what it encoded before."""

    def __init__(self, cluster: Cluster, settings: GatewaySettings, files: FileDesk) -> None:
        self._files = files
        self._fetcher = MediaFetcher(
            settings.media_hosts, max_bytes=settings.max_media_bytes, fetch_s=settings.media_fetch_s
        )
        self._cluster = cluster
        self._settings = settings

    async def encode_media(self, conversation: Conversation | RawPrompts, context: RequestContext) -> MediaRefs:
        """Encode all media of a conversation and return their references.

        Raises InvalidRequest naming the part that cannot be encoded and why, Unavailable if no vision replica is ready.
        """
        parts = {media_key(media): media for media in reversed(conversation.media)}
        if len(parts) > self._settings.max_media:
            many = f"{len(parts)} images and videos, at most {self._settings.max_media} are accepted (max_media)"
            raise InvalidRequest(f"messages: {many}", field="messages")
        slots = asyncio.Semaphore(MAX_AT_ONCE)

        async def encode(media: Media) -> MediaRef:
            async with slots:
                return await self._encode(media, context)

        tasks = [asyncio.create_task(encode(media)) for media in parts.values()]
        try:
            return dict(zip(parts, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()

    async def _encode(self, media: Media, context: RequestContext) -> MediaRef:
        if not self._cluster.visions.is_wanted:
            raise InvalidRequest(f"{media.field}: vision service not configured", field=media.field)
        try:
            data = await self._bytes_of(media)
            upload = partial(_upload, media=media, data=data, context=context)
            return await self._cluster.encode(upload, context)
        except (InvalidRequest, NotFound) as error:
            reason = error.message.removeprefix(f"{media.field}: ")
            raise InvalidRequest(f"{media.field}: {reason}", field=media.field) from None

    async def _bytes_of(self, media: Media) -> bytes:
        match scheme_of(media.url):
            case "http" | "https":
                return await self._fetcher.fetch_media(media.url.strip())
            case "ms":
                return await self._files.file_bytes(media.url.partition("://")[2].strip())
            case _:
                return await asyncio.to_thread(decode_url, media)


def scheme_of(url: str) -> str:
    """Return what stands before the first colon of a URL, in lower case; empty without one."""
    return url[: max(0, url.find(":"))].strip().lower()


async def _upload(replica: Replica, left_s: float, *, media: Media, data: bytes, context: RequestContext) -> MediaRef:
    stream = replica.vision.Encode(timeout=left_s, metadata=context.metadata)
    try:
        start = pb.MediaStart(kind=KINDS[media.kind], num_bytes=len(data))
        await stream.write(pb.EncodeMediaRequest(start=start))
        for at in range(0, len(data), PIECE_BYTES):
            await stream.write(pb.EncodeMediaRequest(data=data[at : at + PIECE_BYTES]))
        await stream.done_writing()
        return (await stream).media
    finally:
        stream.cancel()


def decode_url(media: Media) -> bytes:
    """Return the bytes of a data: URL; its media type is not believed. InvalidRequest for every other URL.

    White space is dropped and missing padding accepted; anything else outside the alphabet is an error, since a
    decoder that skips it would see another file.
    """
    match scheme_of(media.url):
        case "data":
            return _decode_data(media)
        case "http" | "https":
            reason = "remote URLs are not fetched by this server; send the content as a data: URL"
        case "ms":
            reason = "there is no such file on this server; send the content as a data: URL"
        case _:
            reason = "must be a data: URL, data:image/png;base64,..."
    raise InvalidRequest(f"{media.field}: {reason}", field=media.field)


def _decode_data(media: Media) -> bytes:
    """Decode in pieces, between which other threads run."""
    url = media.url
    comma = url.find(",")
    if comma < 0 or url[:comma].rpartition(";")[2].strip().lower() != "base64":
        raise InvalidRequest(f"{media.field}: a data: URL must be base64, data:image/png;base64,...", field=media.field)
    end = len(url.rstrip(f"={ASCII_SPACE.decode()}"))
    pieces: list[bytes] = []
    rest = b""
    try:
        for at in range(comma + 1, end, PIECE_BYTES):
            text = rest + url[at : min(at + PIECE_BYTES, end)].encode("ascii").translate(None, ASCII_SPACE)
            if b"=" in text:
                raise binascii.Error
            num_whole = len(text) - len(text) % 4
            pieces.append(base64.b64decode(text[:num_whole], validate=True))
            rest = text[num_whole:]
        pieces.append(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
    except (UnicodeEncodeError, binascii.Error):
        raise InvalidRequest(f"{media.field}: the payload is not valid base64", field=media.field) from None
    return b"".join(pieces)
