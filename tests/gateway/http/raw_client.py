"""A client that sends bytes as they are, for what no HTTP library would send."""

import asyncio
from contextlib import asynccontextmanager

import orjson


class RawConnection:
    """One connection. `answer` reads until the server closes, or to the end of one answer with a Content-Length."""

    def __init__(self, reader, writer):
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces, pause_s=0.0):
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(pause_s)

    async def answer(self):
        """(status, headers, JSON body) of the next answer."""
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, orjson.loads(body)

    async def closed(self, within_s=5.0):
        """Waits until the server has closed; what it still sent."""
        try:
            async with asyncio.timeout(within_s):
                return await self._reader.read()
        except ConnectionError:
            return b""


@asynccontextmanager
async def raw_connection(site):
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()


def head_of(path, *headers, method="POST"):
    return "\r\n".join((f"{method} {path} HTTP/1.1", "host: x", *headers, "", "")).encode()
