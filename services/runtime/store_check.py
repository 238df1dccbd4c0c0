"""The check of the store before a process serves."""

import logging
from collections.abc import Sequence

from services.runtime.errors import StoreNotSupported, StoreUnavailable
from services.runtime.redis_access import RedisAccess
from services.runtime.redis_connection import RedisRefusal, command
from services.runtime.redis_instance import RedisInstance

log = logging.getLogger(__name__)

TIMEOUT_S = 2.0
# Keys in this many slots; a shard of a Redis Cluster has all of them by chance at most once in 3^15 starts.
PROBES = [f"moonshard:probe:{number}".encode() for number in range(16)]


async def check_store(urls: Sequence[str], access: RedisAccess) -> None:
    """Raise StoreNotSupported for a shard of Redis Cluster. A store that does not answer yet is accepted."""
    for url in urls:
        instance = RedisInstance(url, num_connections=1, timeout_s=TIMEOUT_S, access=access)
        try:
            replies = await instance.run("check", [command(b"EXISTS", probe) for probe in PROBES])
        except StoreUnavailable as failure:
            log.warning("store cannot be checked", extra={"store": instance.name, "reason": failure.message})
            continue
        finally:
            instance.close()
        moved = next((reply for reply in replies if isinstance(reply, RedisRefusal) and reply.code == "MOVED"), None)
        if moved is not None:
            raise StoreNotSupported(
                f"the store {instance.name} answers {moved}: it belongs to a Redis Cluster, which is not supported; "
                "name independent servers, or a master behind Sentinel"
            )
