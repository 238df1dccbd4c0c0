"""Requests and tokens per minute of each API key, counted in Redis for all gateways together."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.credentials import CredentialProvider

from gateway.http.errors import RateLimited
from gateway.metrics import UNCOUNTED_REQUESTS
from gateway.settings import GatewaySettings
from services.runtime.redis_access import RedisAccess

log = logging.getLogger(__name__)

STORE_S = 0.5
RETRY_S = 1.0
# A limit that is never reached, for counting without a decision.
NO_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit of one key: how much there is per minute, how much is left, and when more will be."""

    limit: int
    remaining: int
    reset_s: float


class KeyLimits:
    """Counts per key in a sliding minute. When the store is gone nothing is limited, and that is counted.

    Tokens are known only at the end of a request: one is admitted while any budget is left, and pays afterwards.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._requests = settings.requests_per_minute
        self._tokens = settings.tokens_per_minute
        if settings.limits_store:
            url = settings.limits_store[0].replace("unix://", "redis+unix://")
            self._storage: RedisStorage | MemoryStorage = RedisStorage(
                f"async+{url}",
                wrap_exceptions=True,
                implementation="redispy",
                key_prefix="moonshard-limits",
                socket_timeout=STORE_S,
                socket_connect_timeout=STORE_S,
                **_access_options(settings.store_access, url),
            )
        else:
            self._storage = MemoryStorage(wrap_exceptions=True)
        self._strategy = SlidingWindowCounterRateLimiter(self._storage)
        self._retry_at_s = 0.0

    async def close(self) -> None:
        """Close the connection to the store."""
        if isinstance(self._storage, RedisStorage):
            # The package never closes what it opened, and its types do not expose it.
            bridge: Any = self._storage.bridge
            await bridge.get_connection().aclose()

    async def admit(self, owner: str) -> dict[str, str]:
        """Count one request and return the headers that say what is left. Raises RateLimited."""
        headers: dict[str, str] = {}
        if not (self._requests or self._tokens):
            return headers
        if time.monotonic() < self._retry_at_s:
            UNCOUNTED_REQUESTS.inc()
            return headers
        try:
            if self._tokens:
                tokens = await self._budget(owner, "tokens", self._tokens)
                headers |= _headers_of("tokens", tokens)
                if tokens.remaining <= 0:
                    raise _refusal("tokens", tokens, headers)
            if self._requests:
                admitted = await self._strategy.hit(RateLimitItemPerMinute(self._requests), owner, "requests")
                requests = await self._budget(owner, "requests", self._requests)
                headers |= _headers_of("requests", requests)
                if not admitted:
                    raise _refusal("requests", requests, headers)
        except StorageError as error:
            self._lost(error)
            UNCOUNTED_REQUESTS.inc()
        return headers

    async def pay(self, owner: str, num_tokens: int) -> None:
        """Count the tokens of a request that is over, even beyond the limit."""
        if not self._tokens or not num_tokens or time.monotonic() < self._retry_at_s:
            return
        item = RateLimitItemPerMinute(self._tokens)
        try:
            await self._storage.acquire_sliding_window_entry(
                item.key_for(owner, "tokens"), NO_LIMIT, item.get_expiry(), num_tokens
            )
        except StorageError as error:
            self._lost(error)

    async def _budget(self, owner: str, kind: str, limit: int) -> Budget:
        stats = await self._strategy.get_window_stats(RateLimitItemPerMinute(limit), owner, kind)
        return Budget(limit, max(0, stats.remaining), max(0.0, stats.reset_time - time.time()))

    def _lost(self, error: StorageError) -> None:
        self._retry_at_s = time.monotonic() + RETRY_S
        log.warning("limits are off: their store does not answer", extra={"error": str(error.storage_error)[:200]})


class _PasswordFile(CredentialProvider):
    """Gives redis-py the password of each new connection."""

    def __init__(self, access: RedisAccess, user: str | None) -> None:
        self._access = access
        self._user = user

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        password = self._access.password() or ""
        return (self._user, password) if self._user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _access_options(access: RedisAccess, url: str) -> dict[str, Any]:
    """Return the options of redis-py that match our own connections. A password file wins over the URL."""
    options: dict[str, Any] = {}
    at = urlsplit(url)
    if access.password_file is not None:
        options["credential_provider"] = _PasswordFile(access, at.username)
    if at.scheme == "rediss":
        options |= {"ssl_ca_certs": access.ca, "ssl_certfile": access.cert, "ssl_keyfile": access.key}
        options = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    return options


def _headers_of(kind: str, budget: Budget) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(budget.limit),
        f"x-ratelimit-remaining-{kind}": str(budget.remaining),
        f"x-ratelimit-reset-{kind}": f"{math.ceil(budget.reset_s)}s",
    }


def _refusal(kind: str, budget: Budget, headers: dict[str, str]) -> RateLimited:
    rule = f"your key may use {budget.limit} {kind} per minute"
    return RateLimited(f"rate limit reached: {rule}", headers, retry_after_s=max(1.0, budget.reset_s))
