"""A connection to Redis that reads values directly into their buffers (DECISIONS.md says why it is our own)."""

import asyncio
from collections.abc import Sequence
from typing import TypeAlias, cast
from urllib.parse import parse_qs, unquote, urlsplit

from services.runtime.redis_access import NO_ACCESS, RedisAccess
from services.runtime.redis_sentinel import is_sentinel, master_url

Buffer: TypeAlias = bytes | bytearray | memoryview
SCRATCH_BYTES = 64 * 1024
MAX_STRING_BYTES = 512 * 1024 * 1024  # Redis' own bound
DEFAULT_PORT = 6379


class RedisError(Exception):
    """The peer does not speak Redis' protocol, or refuses the connection."""


class RedisRefusal(RedisError):
    """An error reply to one command, such as "OOM command not allowed"; the connection stays usable."""

    @property
    def code(self) -> str:
        """The reply's first word, such as OOM, READONLY, LOADING or WRONGTYPE."""
        return str(self).partition(" ")[0]


Reply: TypeAlias = int | bytes | bytearray | RedisRefusal | None


def command(*arguments: bytes | Sequence[Buffer]) -> list[Buffer]:
    """Return a command as buffers to send. An argument may consist of several pieces; none is copied."""
    buffers: list[Buffer] = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        pieces = [argument] if isinstance(argument, bytes) else argument
        buffers += (b"$%d\r\n" % sum(map(len, pieces)), *pieces, b"\r\n")
    return buffers


async def connect(url: str, access: RedisAccess = NO_ACCESS) -> "RedisConnection":
    """Open redis://, rediss://, unix:// or a master behind Sentinel, with user and database of the URL.

    Raises OSError or RedisError.

    access  the password, if not the URL's own, and the certificates for rediss://
    """
    loop = asyncio.get_running_loop()
    at = urlsplit(await master_url(url) if is_sentinel(url) else url)
    if at.scheme == "unix":
        _, connection = await loop.create_unix_connection(RedisConnection, unquote(at.path))
        database = parse_qs(at.query).get("db", ["0"])[0]
    else:
        tls = access.ssl_context() if at.scheme == "rediss" else None
        _, connection = await loop.create_connection(
            RedisConnection, at.hostname or "", at.port or DEFAULT_PORT, ssl=tls
        )
        database = at.path.strip("/") or "0"
    greeting = []
    password = access.password() or unquote(at.password or "")
    if password:
        user = [unquote(at.username).encode()] if at.username else []
        greeting.append(command(b"AUTH", *user, password.encode()))
    if database != "0":
        greeting.append(command(b"SELECT", database.encode()))
    for reply in await connection.run(greeting):
        if isinstance(reply, RedisRefusal):
            connection.close()
            raise reply
    return connection


class RedisConnection(asyncio.BufferedProtocol):
    """Runs one pipeline at a time. Any failure, cancellation included, closes the connection for good."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._scratch = bytearray(SCRATCH_BYTES)  # lines and beginnings of values
        self._filled = 0
        self._skip = 0  # following bytes to drop
        self._target = memoryview(b"")  # the part of a value still to be read
        self._sinks: Sequence[memoryview] = ()
        self._replies: list[Reply] = []
        self._num_replies = 0
        self._done: asyncio.Future[None] | None = None

    async def run(self, commands: Sequence[list[Buffer]], sinks: Sequence[memoryview] = ()) -> list[Reply]:
        """Send the commands at once and return their replies in order.

        sinks    one buffer for each command, or none at all. A string of exactly its size is read into it, any other
                 string is dropped; in both cases the reply is the string's length
        returns  int, None for nil, bytes for a status, bytearray for a string without a sink, RedisRefusal for an error
        raises   RedisError, OSError. The sinks are then undefined, but not written to any more
        """
        assert not sinks or len(sinks) == len(commands), f"{len(sinks)} sinks for {len(commands)} commands"
        if not commands:
            return []
        if self.closed:
            raise ConnectionResetError("the connection is closed")
        assert self._done is None and self._transport is not None, "one pipeline at a time"
        self._done = asyncio.get_running_loop().create_future()
        self._replies, self._num_replies, self._sinks = [], len(commands), sinks
        try:
            self._transport.writelines([buffer for buffers in commands for buffer in buffers])
            await self._done
        except BaseException:
            self.close()
            raise
        self._done, self._sinks = None, ()
        return self._replies

    def close(self) -> None:
        """Close it at once; no sink is written to afterwards."""
        self.closed = True
        self._target, self._sinks = memoryview(b""), ()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or ConnectionResetError("Redis closed the connection"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target if len(self._target) else memoryview(self._scratch)[self._filled :]

    def buffer_updated(self, num_bytes: int) -> None:
        if self.closed:
            return
        if len(self._target):
            self._target = self._target[num_bytes:]
        else:
            self._filled += num_bytes
        try:
            self._read_scratch()
        except RedisError as error:
            self._fail(error)
        except ValueError as error:
            self._fail(RedisError(f"not Redis' protocol: {error}"))

    def _fail(self, error: Exception) -> None:
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def _read_scratch(self) -> None:
        """Process the complete part of the scratch buffer, and move the rest to its front."""
        start = 0
        while not len(self._target):
            if self._num_replies == len(self._replies) and self._done is not None and not self._done.done():
                self._done.set_result(None)
            skipped = min(self._skip, self._filled - start)
            start += skipped
            self._skip -= skipped
            end = self._scratch.find(b"\r\n", start, self._filled)
            if self._skip or end < 0:
                break
            start = self._read_line(start, end)
        self._scratch[: self._filled - start] = self._scratch[start : self._filled]
        self._filled -= start
        if self._filled == SCRATCH_BYTES:
            raise RedisError("a line of the protocol has no end")

    def _read_line(self, start: int, end: int) -> int:
        """Read the available part of one reply; return where the next one starts."""
        if len(self._replies) == self._num_replies:
            raise RedisError("a reply without a command")
        kind, text = bytes(self._scratch[start : start + 1]), bytes(self._scratch[start + 1 : end])
        if kind == b"$" and text != b"-1":
            return self._read_string(int(text), end + 2)
        if kind == b"-":
            self._replies.append(RedisRefusal(text.decode(errors="replace")))
            return end + 2
        if kind not in {b"$", b":", b"+"}:
            raise RedisError(f"unknown kind of reply {kind!r}")
        self._replies.append(int(text) if kind == b":" else text if kind == b"+" else None)
        return end + 2

    def _read_string(self, length: int, start: int) -> int:
        if not 0 <= length <= MAX_STRING_BYTES:
            raise RedisError(f"a string of {length} bytes")
        if self._sinks:
            sink = self._sinks[len(self._replies)]
            self._replies.append(length)
            if len(sink) != length:
                self._skip = length + 2
                return start
        else:
            string = bytearray(length)
            self._replies.append(string)
            sink = memoryview(string)
        here = min(length, self._filled - start)
        sink[:here] = memoryview(self._scratch)[start : start + here]
        self._target = sink[here:]
        self._skip = 2  # the line end after it
        return start + here
