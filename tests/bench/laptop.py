"""The speed of `make serve` on this machine: Nano, all processes, streams of tokens through the REST API.

python -m tests.bench laptop
"""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence

import httpx

from tests.bench.served import served_nano
from tests.bench.table import print_table

STREAMS = (1, 4, 16)
REPEATS = 5
NUM_TOKENS = 200
PROMPT = "The red circle moves to the left and the blue square to the right. " * 8


async def stream(http: httpx.AsyncClient, seed: int) -> list[float]:
    """Return when the request was sent, and when each event with tokens arrived."""
    body = {
        "model": "kimi-k2.6",
        "prompt": f"{seed} {PROMPT}",
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": seed,
    }
    times = [time.perf_counter()]
    async with http.stream("POST", "/v1/completions", json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                times += [time.perf_counter()] if event["choices"] else []
                assert event["usage"] is None or event["usage"]["completion_tokens"] == NUM_TOKENS
    return times


async def measure(url: str) -> list[dict[str, object]]:
    """One row for each number of streams."""
    rows: list[dict[str, object]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as http:
        await stream(http, 0)
        for num_streams in STREAMS:
            runs: list[Sequence[list[float]]] = []
            for repeat in range(REPEATS):
                seeds = [1 + 1000 * num_streams + 100 * repeat + number for number in range(num_streams)]
                runs.append(await asyncio.gather(*(stream(http, seed) for seed in seeds)))
            first_ms = [1e3 * (times[1] - times[0]) for run in runs for times in run]
            # From the first token on, so that the time for the prompt is not part of it.
            rates = [
                num_streams * (NUM_TOKENS - 1) / (max(t[-1] for t in run) - min(t[1] for t in run)) for run in runs
            ]
            rows.append(
                {
                    "streams": num_streams,
                    "first token ms": f"{statistics.median(first_ms):.0f} (max {max(first_ms):.0f})",
                    "tok/s, all": f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})",
                    "tok/s, each": f"{statistics.median(rates) / num_streams:.0f}",
                }
            )
    return rows


def main() -> None:
    """Starts the cluster of `moonshard up` and prints the table."""
    started = time.perf_counter()
    with served_nano() as cluster:
        ready_s = time.perf_counter() - started
        rows = asyncio.run(measure(cluster.url))
        memory = sum(map(cluster.memory_bytes, cluster.names)) >> 20
    print_table(f"Nano as `make serve` serves it: ready after {ready_s:.1f} s, {memory} MiB in all", rows)


if __name__ == "__main__":
    main()
