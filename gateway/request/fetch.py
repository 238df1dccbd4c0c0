"""Images and videos from the web, for operators who allow it: from listed hosts only, and never from inside.

The addresses of a host are judged when the connection is made, and the connection goes to the address that was judged:
a name that resolves to something private, or does so only the second time, gets nowhere. Every redirect starts again
with the same questions.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable

import httpx

from services.runtime.errors import InvalidRequest

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 3
CONNECT_S = 5.0  # to one address; then the next is tried
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


class AddressRefused(httpx.ConnectError):
    """The name leads to an address that nobody may reach through this server."""


def is_public(address: IpAddress) -> bool:
    """Return whether an address is of the public internet, whatever it wraps: no private, no link-local one."""
    if isinstance(address, ipaddress.IPv6Address):
        if any(address in network for network in INSIDE):
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


class _GuardedTransport(httpx.AsyncBaseTransport):
    """Connects to addresses that may be reached, one after the other, and to nothing else."""

    def __init__(self, may_reach: Callable[[IpAddress], bool]) -> None:
        self._may_reach = may_reach
        self._network = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the first address of its host that accepts. Raises AddressRefused if any is refused."""
        host = request.url.host
        # The name stays in the Host header and is what the certificate must be for.
        extensions = {**request.extensions, "sni_hostname": host}
        failure = httpx.ConnectError("the host has no address")
        for address in await self._addresses(host, request.url.port):
            url = request.url.copy_with(host=address)
            pinned = httpx.Request(
                request.method, url, headers=request.headers, stream=request.stream, extensions=extensions
            )
            try:
                return await self._network.handle_async_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = httpx.ConnectError(str(error))
        raise failure

    async def aclose(self) -> None:
        """Close all connections."""
        await self._network.aclose()

    async def _addresses(self, host: str, port: int | None) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpx.ConnectError("the host has no address") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not all(self._may_reach(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
            raise AddressRefused("the host's address is not public")
        return addresses


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
        """Return the bytes behind an http or https URL. Raises InvalidRequest, whose message has no field yet."""
        if not self._hosts:
            raise InvalidRequest("remote URLs are not fetched by this server; send the content as a data: URL")
        if not url.isascii():
            raise InvalidRequest("the URL is not valid")
        try:
            async with asyncio.timeout(self._fetch_s), self._client() as client, client.stream("GET", url) as got:
                return await self._body_of(got)
        except TimeoutError:
            raise InvalidRequest(f"the URL gave no file within {self._fetch_s:g} s") from None
        except httpx.TooManyRedirects:
            raise InvalidRequest(f"the URL leads through more than {MAX_REDIRECTS} redirects") from None
        except AddressRefused:
            raise InvalidRequest("the URL leads to an address that this server does not visit") from None
        except httpx.InvalidURL:
            raise InvalidRequest("the URL is not valid") from None
        except (httpx.HTTPError, OSError):
            raise InvalidRequest("the URL cannot be read") from None

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=_GuardedTransport(self._may_reach),
            event_hooks={"request": [self._check]},  # of redirects, too
            follow_redirects=True,
            max_redirects=MAX_REDIRECTS,
            headers={"accept": "image/*, video/*", "accept-encoding": "identity", "user-agent": "moonshard"},
            timeout=httpx.Timeout(self._fetch_s, connect=CONNECT_S),
        )

    async def _body_of(self, got: httpx.Response) -> bytes:
        if got.status_code != httpx.codes.OK:
            raise InvalidRequest(f"the URL answers with status {got.status_code}")
        body = bytearray()
        async for piece in got.aiter_raw():
            body += piece
            if len(body) > self._max_bytes:
                raise InvalidRequest(f"the file behind the URL has more than {self._max_bytes} bytes")
        return bytes(body)

    async def _check(self, request: httpx.Request) -> None:
        at = request.url
        host = at.host.lower()
        has_port = at.port is None or 0 < at.port < 65536
        if at.scheme not in ("http", "https") or not host or at.userinfo or not has_port:
            raise InvalidRequest("the URL must be http or https with a host, and without a password")
        listed = host in self._hosts or any(host.endswith(entry) for entry in self._hosts if entry.startswith("."))
        if not listed and "*" not in self._hosts:
            raise InvalidRequest("the URL's host is not on the list of this server; send the content as a data: URL")
