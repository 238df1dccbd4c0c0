"""Request bodies, read within bounds of size, time and structure; large ones are parsed in a thread."""

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from gateway.http.body import quote
from gateway.http.body_budget import LEASE, BodyBudget, BodyLease
from gateway.http.errors import BodyTooLarge, BodyTooSlow, ClientGone
from gateway.http.json_bounds import JsonBounds, load_object
from gateway.settings import GatewaySettings
from services.runtime.errors import InvalidRequest

T = TypeVar("T")

PIECE_BYTES = 1 << 20  # of a decompressed body in one step
SMALL_BYTES = 32 << 10  # up to here the event loop parses, in about a millisecond
# One: two would only take turns, and the event loop would have to wait for both.
NUM_WORKERS = 1


class BodyReader:
    """Reads bodies within the settings. Owns the budget of all bodies and the thread that parses large ones."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.budget = BodyBudget(settings.max_bodies_bytes, settings.max_key_bodies_bytes)
        self._max_bytes = settings.max_body_bytes
        self._body_s = settings.body_s
        self._bytes_per_s = settings.body_bytes_per_s
        self._bounds = JsonBounds(settings.max_body_values, settings.max_body_containers, settings.max_body_depth)
        self._worker = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="bodies")

    def close(self) -> None:
        """End the thread, without waiting for it."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def read_json(self, request: Request, parse: Callable[[dict[str, Any]], T]) -> T:
        """Read the JSON object in the body and return what `parse` makes of it.

        Raises what `parse` raises; InvalidRequest for anything but a JSON object; BodyTooLarge, BodyTooSlow,
        Overloaded where a bound is reached; ClientGone if the sender leaves.
        """
        content_type = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
        if content_type != "application/json" and not content_type.endswith("+json"):
            rule = f"Content-Type must be application/json, not {quote(content_type)}"
            raise InvalidRequest(rule, field="Content-Type")
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip"):
            raise InvalidRequest("Content-Encoding must be gzip, or the body sent as it is", field="Content-Encoding")
        pieces = await self._read_pieces(request, self._max_bytes)
        if encoding == "gzip":
            pieces = await self._unzip(b"".join(pieces), request.scope[LEASE])

        def parsed() -> T:
            return parse(load_object(b"".join(pieces), self._bounds))

        if sum(map(len, pieces)) <= SMALL_BYTES:
            return parsed()
        return await asyncio.get_running_loop().run_in_executor(self._worker, parsed)

    async def read_bytes(self, request: Request, max_bytes: int) -> bytes:
        """Read the body as it came. Raises BodyTooLarge, BodyTooSlow, Overloaded, ClientGone."""
        return b"".join(await self._read_pieces(request, max_bytes))

    async def _read_pieces(self, request: Request, max_bytes: int) -> list[bytes]:
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise BodyTooLarge(f"the body has {declared} bytes, at most {max_bytes} are accepted")
        lease: BodyLease = request.scope[LEASE]
        pieces: list[bytes] = []
        num_bytes = 0
        began_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(began_s + self._body_s) as limit:
                async for piece in request.stream():
                    num_bytes += len(piece)
                    if num_bytes > max_bytes:
                        raise BodyTooLarge(f"the body is larger than the {max_bytes} bytes that are accepted")
                    lease.grow(len(piece))
                    pieces.append(piece)
                    limit.reschedule(began_s + self._body_s + num_bytes / self._bytes_per_s)
        except ClientDisconnect as error:
            raise ClientGone("the client left while it sent the body") from error
        except TimeoutError as error:
            rule = f"at least {self._bytes_per_s} bytes/s are expected after the first {self._body_s:g} s"
            raise BodyTooSlow(f"the body came too slowly: {rule}") from error
        return pieces

    async def _unzip(self, raw: bytes, lease: BodyLease) -> list[bytes]:
        """Return what the one gzip member holds that the bytes are, within the budget."""
        unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        loop = asyncio.get_running_loop()
        pieces: list[bytes] = []
        num_bytes = 0
        rest = raw
        while not unzip.eof:
            try:
                piece = await loop.run_in_executor(self._worker, partial(unzip.decompress, rest, PIECE_BYTES))
            except zlib.error as error:
                raise InvalidRequest("the body is not valid gzip", field="Content-Encoding") from error
            rest = unzip.unconsumed_tail
            if not piece and not rest and not unzip.eof:
                break
            num_bytes += len(piece)
            if num_bytes > self._max_bytes:
                raise BodyTooLarge(f"the body unfolds to more than the {self._max_bytes} bytes that are accepted")
            lease.grow(len(piece))
            pieces.append(piece)
        if not unzip.eof or unzip.unused_data:
            raise InvalidRequest("the body is not one whole gzip file", field="Content-Encoding")
        return pieces
