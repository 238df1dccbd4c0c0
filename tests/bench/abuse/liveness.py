"""How soon /live answers while a gateway is abused, measured from a process of its own.

python -m tests.bench.abuse.liveness
"""

import asyncio
import gzip
import http.client
import json
import multiprocessing
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import numpy as np

from tests.bench.gateway_site import bench
from tests.bench.table import print_table
from tests.gateway.conftest import NUM_TOKENS
from tests.gateway.site import CONTEXT_TOKENS
from tests.small_tokenizer import write_small_tokenizer

SECONDS = 12.0
EVERY_S = 0.01
STEP_S = 0.02
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
MIB = 1 << 20

Abuse = Callable[[str, int], Awaitable[None]]


def probe(host: str, port: int, pipe: Connection) -> None:
    """Ask for /live again and again, over new connections, until the other end says stop; answer with the times."""
    took: list[float] = []
    while not pipe.poll(EVERY_S):
        started_s = time.perf_counter()
        connection = http.client.HTTPConnection(host, port, timeout=30)
        with suppress(OSError):
            connection.request("GET", "/live")
            assert connection.getresponse().status == 200
            took.append(time.perf_counter() - started_s)
        connection.close()
    pipe.send(took)


def chat(text: str) -> bytes:
    return json.dumps({"model": "kimi-k2.6", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}).encode()


async def nothing(host: str, port: int) -> None:
    await asyncio.sleep(0.1)


def posts(bodies: list[bytes], **headers: str) -> Abuse:
    """Send these bodies at once, again and again."""

    async def send(host: str, port: int) -> None:
        async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
            url = f"http://{host}:{port}{CHAT}"
            await asyncio.gather(
                *(client.post(url, content=body, headers={**JSON, **headers}) for body in bodies),
                return_exceptions=True,
            )

    return send


async def endless_heads(host: str, port: int) -> None:
    async def one() -> None:
        _, writer = await asyncio.open_connection(host, port)
        with suppress(ConnectionError):
            writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx: ".encode())
            for _ in range(40):
                writer.write(b"a" * MIB)
                await writer.drain()
        writer.close()

    await asyncio.gather(*(one() for _ in range(8)))


async def dribblers(host: str, port: int) -> None:
    writers = [(await asyncio.open_connection(host, port))[1] for _ in range(300)]
    for _ in range(20):
        for writer in writers:
            if not writer.is_closing():
                writer.write(b"G")
        await asyncio.sleep(0.1)
    for writer in writers:
        writer.close()


def abuses() -> dict[str, Abuse]:
    long = [chat("word " * (12 * MIB)) for _ in range(8)]
    picture = "data:image/png;base64," + "A" * (60 * MIB)
    parts = [{"type": "image_url", "image_url": {"url": picture}}]
    shown = json.dumps({"model": "kimi-k2.6", "messages": [{"role": "user", "content": parts}]}).encode()
    many = json.dumps({"model": "kimi-k2.6", "messages": [{"role": "user", "content": "a"}] * 33_000}).encode()
    bomb = gzip.compress(b'{"messages":[' + b"{}," * 1_400_000 + b"{}]}")
    return {
        "nothing": nothing,
        "8 texts of 60 MiB": posts(long),
        "8 pictures of 60 MiB": posts([shown] * 8),
        "4 of 33,000 messages": posts([many] * 4),
        "10 gzip bombs": posts([bomb] * 10, **{"content-encoding": "gzip"}),
        "8 heads without end": endless_heads,
        "300 that dribble": dribblers,
    }


async def measure(host: str, port: int, name: str, abuse: Abuse) -> dict[str, object]:
    """One row of the table."""
    ours, theirs = multiprocessing.Pipe()
    prober = multiprocessing.Process(target=probe, args=(host, port, theirs))
    prober.start()
    end_s = time.monotonic() + SECONDS
    num_times = 0
    while time.monotonic() < end_s:
        await abuse(host, port)
        num_times += 1
    ours.send(None)
    took = np.array(await asyncio.to_thread(ours.recv)) * 1e3
    await asyncio.to_thread(prober.join)
    p50, p99 = np.percentile(took, (50, 99))
    return {
        "abuse": name,
        "times": num_times,
        "probes": len(took),
        "p50 ms": round(p50, 1),
        "p99 ms": round(p99, 1),
        "max ms": round(took.max(), 1),
    }


async def rows() -> AsyncIterator[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        write_small_tokenizer(Path(folder), NUM_TOKENS, CONTEXT_TOKENS)
        async with bench(Path(folder), STEP_S) as site:
            host, _, port = site.address.rpartition(":")
            for name, abuse in abuses().items():
                yield await measure(host, int(port), name, abuse)


async def run() -> None:
    print_table("/live while the gateway is abused", [row async for row in rows()])


def main() -> None:
    multiprocessing.set_start_method("spawn")
    asyncio.run(run())


if __name__ == "__main__":
    main()
