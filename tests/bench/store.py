"""How fast latent KV goes through the store: blocks of K2.6, one Redis, a Unix socket.

Two rates, because the machine is shared: by the clock, and per second of our own CPU time. redis-py's asyncio client
stands beside ours; it does less, as it neither checks nor names its values.

    python -m tests.bench.store
"""

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import redis.asyncio
import uvloop

from services.runtime.blobs import BlobStore
from services.runtime.redis_access import NO_ACCESS, RedisAccess
from services.runtime.redis_server import RedisServer
from tests.bench.table import print_table

BLOCK_BYTES = 64 * 70272  # 64 tokens, 61 layers
CHUNK_BYTES = 1 << 20
NUM_BLOCKS = 48
ROUNDS = 5


async def rate(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return the best of some rounds: MB/s by the clock, MB per second of CPU time."""
    clock = cpu = float("inf")
    for _ in range(ROUNDS):
        started, cpu_started = time.perf_counter(), time.process_time()
        await work()
        clock = min(clock, time.perf_counter() - started)
        cpu = min(cpu, time.process_time() - cpu_started)
    num_mb = NUM_BLOCKS * BLOCK_BYTES / 1e6
    return num_mb / clock, num_mb / cpu


async def measure(url: str, access: RedisAccess) -> list[tuple[str, float, float]]:
    """Rows of operation, MB/s by the clock, MB per second of CPU time."""
    blocks = {f"block-{i}": os.urandom(BLOCK_BYTES) for i in range(NUM_BLOCKS)}
    names = list(blocks)
    slots = [memoryview(bytearray(BLOCK_BYTES)) for _ in blocks]
    store = BlobStore([url], ttl_s=600, access=access)
    kind = "MAC" if access.mac_file else "checksum"
    rows = [
        (f"put, {kind}", *await rate(lambda: store.put(blocks))),
        (f"get, {kind}", *await rate(lambda: store.get(names))),
        (f"get_into, {kind}", *await rate(lambda: store.get_into(names, slots))),
    ]
    assert await store.get_into(names, slots) == [True] * NUM_BLOCKS
    assert all(slot == block for slot, block in zip(slots, blocks.values(), strict=True))
    await store.close()
    return rows


async def measure_library(url: str) -> list[tuple[str, float, float]]:
    """The same of redis-py's asyncio client."""
    blocks = {"block-0": os.urandom(BLOCK_BYTES)}
    library = redis.asyncio.Redis.from_url(url)
    chunks = [f"chunk-{i}" for i in range(NUM_BLOCKS * BLOCK_BYTES // CHUNK_BYTES)]

    async def put_with_library() -> None:
        for start in range(0, len(chunks), 16):
            pipeline = library.pipeline(transaction=False)
            for name in chunks[start : start + 16]:
                pipeline.set(name, memoryview(blocks["block-0"])[:CHUNK_BYTES], ex=600)
            await pipeline.execute()

    async def get_with_library() -> None:
        for start in range(0, len(chunks), 16):
            await library.mget(chunks[start : start + 16])

    rows = [("redis-py set", *await rate(put_with_library)), ("redis-py mget", *await rate(get_with_library))]
    await library.aclose()
    return rows


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="moonshard-") as folder, RedisServer(Path(folder)) as server:
        key = Path(folder) / "key"
        key.write_bytes(os.urandom(32).hex().encode())
        rows = [
            row for access in (NO_ACCESS, RedisAccess(mac_file=key)) for row in uvloop.run(measure(server.url, access))
        ]
        rows += uvloop.run(measure_library(server.url))
    print_table(
        "Store: blocks of 4.3 MiB, one Redis, Unix socket",
        [{"operation": name, "MB/s": round(clock), "MB per CPU second": round(cpu)} for name, clock, cpu in rows],
    )


if __name__ == "__main__":
    main()
