"""Images and videos from the web, for operators who allow it: from listed hosts only, and never from inside.

The address is judged when the connection is made, after DNS, so that a name which resolves to something private (or
does so only the second time) gets nowhere. Every redirect starts again with the same questions.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore

from services.runtime.errors import InvalidRequest

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 3
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Of addresses that nobody routes in public any more, or only a network for itself.
INSIDE = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "64:ff9b:1::/48",  # local NAT64
        "fec0::/10",  # site-local
        "::/96",  # IPv4-compatible
        "100::/64",  # discard
    )
)


class AddressRefused(httpcore.ConnectError):
    """The name leads to an address that nobody may reach through this server."""


def is_public(address: IpAddress) -> bool:
    """Whether an address is of the public internet: not private, not link-local as those of metadata services are."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in INSIDE):
            return False
        if address in NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects like httpcore's own, to addresses that may be reached."""

    def __init__(self, may_reach: Callable[[IpAddress], bool]) -> None:
        self._may_reach = may_reach
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the first address of the host; AddressRefused if any of its addresses is refused."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError("the host has no address") from error
        addresses = [str(entry[4][0]) for entry in found]
        if not all(self._may_reach(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
            raise AddressRefused("the host's address is not public")
        return await self._network.connect_tcp(addresses[0], port, timeout, local_address, socket_options)


class MediaFetcher:
    """Fetches from the hosts of a list: "example.com" is that host, ".example.com" all below it, "*" every host.

    max_bytes  of one file
    fetch_s    for one file, redirects included
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        max_bytes: int,
        fetch_s: float,
        may_reach: Callable[[IpAddress], bool] = is_public,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = max_bytes
        self._fetch_s = fetch_s
        self._may_reach = may_reach

    async def fetch_media(self, url: str) -> bytes:
        """The bytes behind an http or https URL. Raises InvalidRequest, whose message has no field yet."""
        if not self._hosts:
            raise InvalidRequest("remote URLs are not fetched by this server; send the content as a data: URL")
        try:
            async with asyncio.timeout(self._fetch_s), AsyncExitStack() as stack:
                pool = httpcore.AsyncConnectionPool(network_backend=_CheckedNetwork(self._may_reach))
                await stack.enter_async_context(pool)
                for _ in range(MAX_REDIRECTS + 1):
                    answer = await self._get(pool, url)
                    if isinstance(answer, bytes):
                        return answer
                    url = answer
        except TimeoutError:
            raise InvalidRequest(f"the URL gave no file within {self._fetch_s:g} s") from None
        except AddressRefused:
            raise InvalidRequest("the URL leads to an address that this server does not visit") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError):
            raise InvalidRequest("the URL cannot be read") from None
        raise InvalidRequest(f"the URL leads through more than {MAX_REDIRECTS} redirects")

    async def _get(self, pool: httpcore.AsyncConnectionPool, url: str) -> bytes | str:
        """The body, or where it is to be looked for."""
        self._check(url)
        async with pool.stream(
            "GET", url, headers={"host": urlsplit(url).netloc, "accept-encoding": "identity"}
        ) as got:
            headers = {name.lower(): value for name, value in got.headers}
            if got.status in REDIRECTS and b"location" in headers:
                return urljoin(url, headers[b"location"].decode("latin-1"))
            if got.status != 200:
                raise InvalidRequest(f"the URL answers with status {got.status}")
            body = bytearray()
            async for piece in got.aiter_stream():
                body += piece
                if len(body) > self._max_bytes:
                    raise InvalidRequest(f"the file behind the URL has more than {self._max_bytes} bytes")
            return bytes(body)

    def _check(self, url: str) -> None:
        try:
            at = urlsplit(url)
            host, port = (at.hostname or "").lower(), at.port
            url.encode("ascii")
        except (ValueError, UnicodeEncodeError):
            raise InvalidRequest("the URL is not valid") from None
        if at.scheme not in ("http", "https") or not host or at.username is not None or port == 0:
            raise InvalidRequest("the URL must be http or https with a host, and without a password")
        listed = host in self._hosts or any(host.endswith(entry) for entry in self._hosts if entry.startswith("."))
        if not listed and "*" not in self._hosts:
            raise InvalidRequest("the URL's host is not on the list of this server; send the content as a data: URL")
