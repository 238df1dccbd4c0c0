"""What the gateway itself adds: CPU and time per request and per streamed token, at 1 and at 64 streams.

The gateway and the tokenizer are real processes, spoken to over HTTP and gRPC. Behind them the tests' scripted engine
sends a token at fixed times and records when; the client, in the same process and on the same clock, records when it
arrives. So the times hold gateway, parser and every hop, and no model.

    python -m tests.bench.gateway
"""

import asyncio
import json
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil

from services.tokenizer.vocabulary import load_vocabulary
from tests.bench.table import print_table
from tests.gateway.engine import Engine
from tests.small_tokenizer import write_small_tokenizer

NUM_IDS = 768
CONTEXT_TOKENS = 4096
NUM_TOKENS = 65
ROUNDS = {1: 12, 64: 3}
TOKEN_S = {1: 0.02, 64: 0.4}  # slow enough for one core, so that no queue is measured
SHOWN = re.compile('"delta":{"content":"(a+)"}')


class StampingEngine(Engine):
    """An engine that records, by the seed of a stream, when it was called and when it sent each token."""

    def __init__(self, token_id: int) -> None:
        super().__init__("decode", lambda *_: [token_id] * CONTEXT_TOKENS)
        self.called: dict[int, float] = {}
        self.said: defaultdict[int, list[float]] = defaultdict(list)

    def _answer(self, request):
        self.called[request.sampling.seed] = time.perf_counter()
        return super()._answer(request)

    def _finish(self, answer, num_tokens, sampling):
        self.said[sampling.seed].append(time.perf_counter())
        return super()._finish(answer, num_tokens, sampling)


@asynccontextmanager
async def process(module: str, **settings: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start a service and yield the address from its log; the rest of the log is read and dropped."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MOONSHARD_")}
    env |= {f"MOONSHARD_{name}": value for name, value in settings.items()}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=env, stderr=asyncio.subprocess.PIPE, limit=2**20
    )
    assert running.stderr is not None
    try:
        address = None
        while address is None:
            address = json.loads(await running.stderr.readline()).get("address")
        reading = asyncio.create_task(running.stderr.read())
        yield running, address
        reading.cancel()
    finally:
        running.terminate()
        await running.wait()


async def answer(http: httpx.AsyncClient, seed: int, num_tokens: int) -> tuple[float, list[float]]:
    """Send one streamed request; return when it was sent and when each token arrived."""
    body = {
        "model": "kimi-k2.6",
        "messages": [{"role": "user", "content": "What is the weather like in Paris today?"}],
        "thinking": {"type": "disabled"},
        "max_tokens": num_tokens,
        "seed": seed,
        "stream": True,
    }
    came: list[float] = []
    sent = time.perf_counter()
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            # Each token is one letter; tokens that arrived together are in one event.
            if shown := SHOWN.search(line):
                came += [time.perf_counter()] * len(shown[1])
    return sent, came


async def measure(
    http: httpx.AsyncClient, gateway: psutil.Process, engine: StampingEngine, num_streams: int
) -> dict[str, object]:
    """One row of the table."""
    engine.token_s = TOKEN_S[num_streams]
    cpu_s: dict[int, float] = {}
    before_ms: list[float] = []
    after_ms: list[float] = []
    seed = num_streams * 1000
    for num_tokens in (1, NUM_TOKENS):
        started = gateway.cpu_times()
        for _ in range(ROUNDS[num_streams]):
            seeds = range(seed, seed + num_streams)
            seed += num_streams
            answers = await asyncio.gather(*(answer(http, one, num_tokens) for one in seeds))
            for one, (sent, came) in zip(seeds, answers, strict=True):
                assert len(came) == len(engine.said[one]) == num_tokens
                before_ms.append((engine.called[one] - sent) * 1e3)
                after_ms += [(b - a) * 1e3 for a, b in zip(engine.said[one], came, strict=True)]
        ended = gateway.cpu_times()
        spent_s = ended.user + ended.system - started.user - started.system
        cpu_s[num_tokens] = spent_s / ROUNDS[num_streams] / num_streams
    return {
        "streams": num_streams,
        "request to engine ms p50 / p90": spread(before_ms),
        "token to client ms p50 / p90": spread(after_ms),
        "CPU ms per request of 1 token": round(cpu_s[1] * 1e3, 2),
        "CPU ms per further token": round((cpu_s[NUM_TOKENS] - cpu_s[1]) / (NUM_TOKENS - 1) * 1e3, 3),
    }


def spread(values: Sequence[float]) -> str:
    return " / ".join(f"{np.percentile(values, share):.2f}" for share in (50, 90))


async def run() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_small_tokenizer(folder, NUM_IDS, CONTEXT_TOKENS)
        engine = StampingEngine(load_vocabulary(folder).encode("a")[0])
        await engine.start()
        async with (
            process("services.tokenizer", LISTEN="127.0.0.1:0", MODEL=name) as (_, tokenizer),
            process("gateway", LISTEN="127.0.0.1:0", TOKENIZERS=tokenizer, DECODES=engine.address) as (
                gateway,
                address,
            ),
            httpx.AsyncClient(base_url=f"http://{address}", timeout=120, trust_env=False) as http,
        ):
            while (await http.get("/health")).status_code != 200:
                await asyncio.sleep(0.05)
            watched = psutil.Process(gateway.pid)
            await answer(http, 1, NUM_TOKENS)
            rows = [await measure(http, watched, engine, num_streams) for num_streams in ROUNDS]
        await engine.stop()
    print_table("The gateway's own part of a request", rows)


def main() -> None:
    asyncio.run(run())


if __name__ == "__main__":
    main()
