"""Redis behind Sentinel: finds the present master.

The URL names the Sentinels and the master: redis+sentinel://host:26379;host:26379/MASTER/0 (rediss+sentinel: TLS to the
master). A user and password in it are for the Sentinels.
"""

from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError as SentinelError

SUFFIX = "+sentinel"
DEFAULT_PORT = 26379
TIMEOUT_S = 1.0


def is_sentinel(url: str) -> bool:
    return urlsplit(url).scheme.endswith(SUFFIX)


def check_sentinel_url(url: str) -> None:
    """Raise ValueError if Sentinels or master are missing."""
    _, master, database = _parts(url)
    if not (_sentinels(url) and master and database.isdigit()):
        raise ValueError("a store behind Sentinel is redis+sentinel://host:26379;host:26379/MASTER/0")


async def master_url(url: str) -> str:
    """Return the redis:// or rediss:// URL of the present master. Raises OSError if no Sentinel knows it."""
    scheme, master, database = _parts(url)
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    login: dict[str, Any] = {"username": unquote(user) or None, "password": unquote(password)} if password else {}
    make: Any = Sentinel
    once = {"retry": Retry(NoBackoff(), 0), "socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    sentinel = make(_sentinels(url), sentinel_kwargs=once | login)
    try:
        host, port = await sentinel.discover_master(master)
    except SentinelError as error:
        raise ConnectionError(f"no Sentinel knows the master {master}: {error}") from error
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{database}"


def _parts(url: str) -> tuple[str, str, str]:
    """Return the master's scheme and name, and the database."""
    at = urlsplit(url)
    master, _, database = at.path.strip("/").partition("/")
    return at.scheme.removesuffix(SUFFIX), master, database or "0"


def _sentinels(url: str) -> list[tuple[str, int]]:
    found = []
    for place in filter(None, urlsplit(url).netloc.rpartition("@")[2].split(";")):
        at = urlsplit(f"//{place}")
        found.append((at.hostname or "", at.port or DEFAULT_PORT))
    return [(host, port) for host, port in found if host]
