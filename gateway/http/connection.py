"""Connections within bounds: their number, and the size and time of the head of a request."""

import asyncio
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.http.dialect import dialect_of, error_response
from gateway.http.errors import HeadersTooLarge, HeadTooSlow
from gateway.metrics import CONNECTIONS, REQUESTS
from gateway.settings import GatewaySettings
from services.runtime.errors import InvalidRequest, MoonshardError, Overloaded

# After an early answer what still comes is read and dropped for so long: a closed socket would take the answer with it.
LINGER_S = 1.0
MAX_DROPPED_BYTES = 1 << 20
RETRY_S = 5.0
ALWAYS_SERVED = b"/live"


class _Refused(Exception):
    """Ends the parser. The connection's `_error` says why."""


@dataclass(slots=True)
class ConnectionWall:
    """The connections of one process. `waiting` are those without a request at the moment, the oldest first."""

    settings: GatewaySettings
    by_address: Counter[str] = field(default_factory=Counter)
    waiting: dict["GuardedConnection", None] = field(default_factory=dict)

    def enter(self, connection: "GuardedConnection") -> None:
        """Count a new connection. Where there are too many, the oldest that waits is closed for it."""
        address = connection.address
        self.by_address[address] += 1
        CONNECTIONS.set(self.by_address.total())
        if self.by_address[address] > self.settings.max_address_connections:
            self._close_oldest(address)
        elif self.by_address.total() > self.settings.max_connections:
            self._close_oldest(None)

    def leave(self, connection: "GuardedConnection") -> None:
        """Take a closed connection out."""
        self.waiting.pop(connection, None)
        self.by_address[connection.address] -= 1
        if not self.by_address[connection.address]:
            del self.by_address[connection.address]
        CONNECTIONS.set(self.by_address.total())

    def check(self, connection: "GuardedConnection") -> None:
        """Raise Overloaded where more connections are open than may be."""
        limits = self.settings
        if self.by_address[connection.address] > limits.max_address_connections:
            rule = f"{limits.max_address_connections} connections of your address are open, which is the limit"
            raise Overloaded(rule, retry_after_s=RETRY_S)
        if self.by_address.total() > limits.max_connections:
            raise Overloaded(
                f"{limits.max_connections} connections are open, which is the limit", retry_after_s=RETRY_S
            )

    def _close_oldest(self, address: str | None) -> None:
        found = (connection for connection in self.waiting if address in (None, connection.address))
        if (oldest := next(found, None)) is not None:
            del self.waiting[oldest]
            oldest.transport.abort()


class GuardedConnection(HttpToolsProtocol):
    """One connection: uvicorn's, with the bounds of a wall and errors in the form of the path's dialect."""

    def __init__(self, *, wall: ConnectionWall, **options: Any) -> None:
        super().__init__(**options)
        self.address = ""
        self.url = b""
        self._wall = wall
        self._head_bytes = 0
        self._unseen_bytes = 0  # received since the parser last gave a part of a body, or a whole head
        self._error: MoonshardError | None = None
        self._is_refused = False
        self._num_dropped = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection and expect a request."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else "unix"
        self._wall.enter(self)
        self._wall.waiting[self] = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop_timer()
        self._wall.leave(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and refuse what is over a bound or not HTTP."""
        if self._is_refused:
            self._num_dropped += len(data)
            if self._num_dropped > MAX_DROPPED_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        if self._head_timer is None and self in self._wall.waiting:
            self._expect_head()
        self._unseen_bytes += len(data)
        try:
            self.parser.feed_data(data)
            self._check_head(0, self._unseen_bytes)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is spoken here; the request is answered as it is
        except (httptools.HttpParserError, _Refused):
            self._refuse(self._error or InvalidRequest("what was sent is not valid HTTP/1.1"))

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take a part of the URL."""
        super().on_url(url)
        self._check_head(len(url), 0)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header, or one trailer."""
        super().on_header(name, value)
        self._check_head(len(name) + len(value) + len(": \r\n"), 0)

    def on_headers_complete(self) -> None:
        """Begin to answer, unless there are too many connections."""
        self._stop_timer()
        self._wall.waiting.pop(self, None)
        self._unseen_bytes = 0
        if self.url != ALWAYS_SERVED:
            try:
                self._wall.check(self)
            except Overloaded as error:
                self._error = error
                raise
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unseen_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of the body."""
        self._unseen_bytes = 0
        super().on_message_complete()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
            self._wall.waiting[self] = None

    def on_response_complete(self) -> None:
        """Expect the next request. A body that was answered before it had come has a moment left to come."""
        is_early = not self.pipeline and self.cycle.more_body
        super().on_response_complete()
        if is_early and not self.transport.is_closing():
            self._rest_timer = self.loop.call_later(LINGER_S, self.transport.close)
        elif self.cycle.response_complete and not self.transport.is_closing():
            self._wall.waiting[self] = None

    def _check_head(self, num_bytes: int, num_unseen_bytes: int) -> None:
        limits = self._wall.settings
        self._head_bytes += num_bytes
        if max(self._head_bytes, num_unseen_bytes) > limits.max_header_bytes:
            self._error = HeadersTooLarge(
                f"URL and headers have more than {limits.max_header_bytes} bytes, which is the limit"
            )
            raise _Refused
        if self.headers is not None and len(self.headers) > limits.max_headers:
            self._error = HeadersTooLarge(f"there are more than {limits.max_headers} headers, which is the limit")
            raise _Refused

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self._wall.settings.header_s, self._head_is_late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._unseen_bytes:
            seconds = self._wall.settings.header_s
            self._refuse(HeadTooSlow(f"the headers did not come within {seconds:g} s, which is the limit"))
        self.transport.close()

    def _refuse(self, error: MoonshardError) -> None:
        """Answer with an error that no application has seen, and close."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            # Another answer is on its way; after it this connection ends.
            self._is_refused = True
            self.cycle.keep_alive = False
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        path = self.url.partition(b"?")[0].decode("latin-1")
        request_id = f"req-{secrets.token_hex(12)}"
        response = error_response(error, path, request_id)
        REQUESTS.labels(dialect_of(path), str(response.status_code)).inc()
        headers = [*response.raw_headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        head = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body))
        self._linger()

    def _linger(self) -> None:
        self._is_refused = True
        self._stop_timer()
        self.loop.call_later(LINGER_S, self.transport.close)
