"""HTTP clients that cost next to nothing: one connection each, which counts the tokens of one stream after another."""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any, cast

SHOWN = re.compile(rb'"(?:content|reasoning_content)":"(a+)"')
END = b"0\r\n\r\n"


@dataclass(slots=True)
class Answer:
    """When a request was sent and each of its tokens came, in seconds of the monotonic clock."""

    seed: int
    sent: float = 0.0
    came: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection. Each token is one letter; tokens that came together are in one event."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._transport: asyncio.Transport
        self._answer = Answer(0)
        self._rest = b""
        self._done: asyncio.Future[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self._rest + data
        end = data.rfind(b"\n\n") + 1
        for shown in SHOWN.finditer(data, 0, end):
            self._answer.came += [now] * len(shown[1])
        self._rest = data[end:]
        if data.endswith(END) and not self._done.done():
            if self._answer.came:
                self._done.set_result(None)
            else:
                self._done.set_exception(RuntimeError(data.decode()))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the gateway closed the connection"))

    async def ask(self, seed: int, num_tokens: int, messages: list[dict[str, Any]], **fields: Any) -> Answer:
        """Send one streamed request, and return what came when it has ended."""
        body = json.dumps(
            {
                "model": "kimi-k2.6",
                "messages": messages,
                "thinking": {"type": "disabled"},
                "max_tokens": num_tokens,
                "seed": seed,
                "stream": True,
                **fields,
            }
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._answer = Answer(seed)
        self._rest = b""
        self._done = asyncio.get_running_loop().create_future()
        self._answer.sent = time.perf_counter()
        self._transport.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await self._done
        return self._answer

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def connect(address: str) -> Client:
    """Return a client with an open connection."""
    host, _, port = address.rpartition(":")
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(address), host, int(port))
    return client
