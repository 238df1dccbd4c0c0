"""One Redis instance: a few connections, time limits, and whether it answered last."""

import asyncio
import logging
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from services.runtime.errors import StoreUnavailable
from services.runtime.metrics import STORE_SECONDS
from services.runtime.redis_access import NO_ACCESS, RedisAccess
from services.runtime.redis_connection import (
    Buffer,
    RedisConnection,
    RedisError,
    RedisRefusal,
    Reply,
    command,
    connect,
)

log = logging.getLogger(__name__)

RETRY_S = 0.25
LOG_S = 10.0  # between two log lines about the same instance
# Refusals of one value; the others of the pipeline are valid. MOVED: another shard of a Redis Cluster has the key.
OF_ONE_VALUE = frozenset({"WRONGTYPE", "MOVED"})
# Refusals of writes; reads still work.
OF_WRITES = frozenset({"OOM", "MISCONF", "NOREPLICAS"})


class RedisInstance:
    """Runs pipelines. After a failure it refuses at once, except one pipeline from time to time, which tries again.

    timeout_s  time limit for connecting, sending and reading the replies of one pipeline
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
        self._log_at = 0.0

    async def run(
        self, operation: str, commands: Sequence[list[Buffer]], sinks: Sequence[memoryview] = ()
    ) -> list[Reply]:
        """Run one pipeline like `RedisConnection.run`; a refusal among the results concerns one value.

        Raises StoreUnavailable within twice `timeout_s` if Redis does not answer, or at once if it refuses the work.
        The message has no address, because clients see it; the log has all details.
        """
        if not commands:
            return []
        with STORE_SECONDS.labels(operation).time():
            async with self._free:
                self._admit()
                try:
                    async with asyncio.timeout(self._timeout_s):
                        connection = self._take_idle() or await connect(self._url, self._access)
                        replies = await connection.run(commands, sinks)
                except (OSError, RedisError) as error:  # TimeoutError is an OSError
                    self._fail(error)
                    raise StoreUnavailable(_for_clients(error), retry_after_s=RETRY_S) from error
                refusal = next((reply for reply in replies if _refuses_all(reply)), None)
                self.down, self._retry_at = False, 0.0
                self._idle.append(connection)
                if isinstance(refusal, RedisRefusal):
                    self._fail(refusal)
                    raise StoreUnavailable(_for_clients(refusal), retry_after_s=RETRY_S)
                return replies

    async def room_bytes(self) -> int | None:
        """Return the memory for values: the limit, or its free part if nothing is evicted; None without a limit."""
        (reply,) = await self.run("info", [command(b"INFO", b"memory")])
        text = reply.decode() if isinstance(reply, bytes | bytearray) else ""
        values = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
        most = int(values.get("maxmemory", 0))
        if most == 0:
            return None
        refuses = values.get("maxmemory_policy") == "noeviction"
        return max(0, most - int(values.get("used_memory", 0))) if refuses else most

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _fail(self, error: Exception) -> None:
        if not (isinstance(error, RedisRefusal) and error.code in OF_WRITES):
            self.down, self._retry_at = True, time.monotonic() + RETRY_S
            # After a failover old connections lead to the wrong server.
            self.close()
        if time.monotonic() > self._log_at:
            self._log_at = time.monotonic() + LOG_S
            log.warning("store failed", extra={"store": self.name, "reason": str(error) or type(error).__name__})

    def _admit(self) -> None:
        now = time.monotonic()
        if self.down and now < self._retry_at:
            raise StoreUnavailable("the store does not answer", retry_after_s=RETRY_S)
        # Other pipelines are refused until this attempt has ended.
        self._retry_at = now + self._timeout_s

    def _take_idle(self) -> RedisConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None


def _refuses_all(reply: Reply) -> bool:
    return isinstance(reply, RedisRefusal) and reply.code not in OF_ONE_VALUE


def _for_clients(error: Exception) -> str:
    """Describe the failure without addresses."""
    if isinstance(error, RedisRefusal):
        return f"the store refuses ({error.code})"
    return "the store does not answer in time" if isinstance(error, TimeoutError) else "the store does not answer"
