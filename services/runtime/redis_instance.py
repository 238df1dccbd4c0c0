"""One Redis instance: a few connections, a bound on every wait, and a memory of whether it answers."""

import asyncio
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from services.runtime.errors import StoreUnavailable
from services.runtime.metrics import STORE_SECONDS
from services.runtime.redis_access import NO_ACCESS, RedisAccess
from services.runtime.redis_connection import Buffer, RedisConnection, RedisError, Reply, connect

RETRY_S = 0.25


class RedisInstance:
    """Runs pipelines. After a failure it refuses at once, and lets one pipeline try again from time to time.

    timeout_s  for connecting, sending and reading the replies of one pipeline
    """

    def __init__(self, url: str, *, num_connections: int, timeout_s: float, access: RedisAccess = NO_ACCESS) -> None:
        at = urlsplit(url)
        self.name = f"{at.scheme}://{at.netloc.rpartition('@')[2]}{at.path}"  # the password stays out of messages
        self._url = url
        self._access = access
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(num_connections)
        self._idle: list[RedisConnection] = []
        self.down = False  # whether the last pipeline failed
        self._retry_at = 0.0

    async def run(
        self, operation: str, commands: Sequence[list[Buffer]], sinks: Sequence[memoryview] = ()
    ) -> list[Reply]:
        """One pipeline, as `RedisConnection.run`; StoreUnavailable within twice `timeout_s` if nothing answers."""
        if not commands:
            return []
        with STORE_SECONDS.labels(operation).time():
            async with self._free:
                self._admit()
                connection: RedisConnection | None = None
                try:
                    async with asyncio.timeout(self._timeout_s):
                        connection = self._take_idle() or await connect(self._url, self._access)
                        replies = await connection.run(commands, sinks)
                except (OSError, RedisError) as error:  # TimeoutError is an OSError
                    self.down, self._retry_at = True, time.monotonic() + RETRY_S
                    reason = str(error) or type(error).__name__
                    raise StoreUnavailable(f"{self.name}: {reason}", retry_after_s=RETRY_S) from error
                self.down = False
                self._idle.append(connection)
                return replies

    def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _admit(self) -> None:
        now = time.monotonic()
        if self.down and now < self._retry_at:
            raise StoreUnavailable(f"{self.name} does not answer", retry_after_s=RETRY_S)
        # The others are refused until this one knows.
        self._retry_at = now + self._timeout_s

    def _take_idle(self) -> RedisConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None
