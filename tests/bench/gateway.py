"""What the gateway and the tokenizer add to a model: CPU, time, and how many streams two cores hold.

Gateway, tokenizer and a decode replica that computes nothing are processes of their own, and so are the clients. The
replica sends a token to every stream at each step and notes when; the clients note when it came. So the figures hold
both services and every hop, and no model.

    python -m tests.bench gateway
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop

from tests.bench.gateway_site import QUESTION, bench, clients, released_folder
from tests.bench.long_history import measure_history
from tests.bench.table import print_table
from tests.bench.token_client import Answer, Client

NUM_TOKENS = 65
ROUNDS = {1: 12, 64: 3}
STEP_S = {1: 0.02, 64: 0.1}
HELD_STREAMS = (100, 200, 300, 400, 500)
HELD_RATE = 30.0
HELD_S = 6.0
RAMP_S = 4.0
LATE_MS = 100.0  # three tokens


async def measure_cost(folder: Path, num_streams: int) -> dict[str, object]:
    """Return one row: times and CPU at so many streams."""
    cpu_ms: dict[int, np.ndarray] = {}
    before_ms: list[float] = []
    after_ms: list[float] = []
    async with bench(folder, STEP_S[num_streams]) as running, clients(running, num_streams) as connected:
        for num_tokens in (1, NUM_TOKENS):
            started = np.array(running.cpu_s())
            for _ in range(ROUNDS[num_streams]):
                asked = [client.ask(running.take_seed(), num_tokens, QUESTION) for client in connected]
                for answer in await asyncio.gather(*asked):
                    note = await running.noted(answer)
                    assert len(answer.came) == len(note["said"]) == num_tokens
                    before_ms.append((note["called"] - answer.sent) * 1e3)
                    after_ms += [(b - a) * 1e3 for a, b in zip(note["said"], answer.came, strict=True)]
            spent = np.array(running.cpu_s()) - started
            cpu_ms[num_tokens] = spent * 1e3 / ROUNDS[num_streams] / num_streams
    further = (cpu_ms[NUM_TOKENS] - cpu_ms[1]) / (NUM_TOKENS - 1)
    return {
        "streams": num_streams,
        "request to engine ms p50 / p90": spread(before_ms),
        "token to client ms p50 / p90": spread(after_ms),
        "CPU ms of a request of 1 token, gateway + tokenizer": " + ".join(f"{one:.2f}" for one in cpu_ms[1]),
        "CPU ms of a further token": " + ".join(f"{one:.3f}" for one in further),
    }


async def measure_held(folder: Path, num_streams: int) -> dict[str, object]:
    """Return one row: whether so many streams of HELD_RATE tokens a second come without delay."""
    num_tokens = int(HELD_RATE * (RAMP_S + HELD_S))
    async with bench(folder, 1 / HELD_RATE) as running, clients(running, num_streams) as connected:

        async def ask(place: int, client: Client) -> Answer:
            await asyncio.sleep(RAMP_S * place / num_streams)
            return await client.ask(running.take_seed(), num_tokens, QUESTION)

        begun = time.perf_counter()
        answering = [asyncio.create_task(ask(place, client)) for place, client in enumerate(connected)]
        await asyncio.sleep(RAMP_S)
        started, from_s = np.array(running.cpu_s()), time.perf_counter()
        await asyncio.sleep(HELD_S / 2)
        busy = (np.array(running.cpu_s()) - started) / (time.perf_counter() - from_s)
        answers = await asyncio.gather(*answering)
        late_ms: list[float] = []
        for answer in answers:
            said = (await running.noted(answer))["said"]
            pairs = zip(said, answer.came, strict=True)
            late_ms += [(b - a) * 1e3 for a, b in pairs if from_s < a < begun + RAMP_S + HELD_S]
    p99 = float(np.percentile(late_ms, 99))
    return {
        "streams": num_streams,
        "token to client ms p50 / p99": f"{np.percentile(late_ms, 50):.1f} / {p99:.1f}",
        "cores busy, gateway + tokenizer": " + ".join(f"{one:.2f}" for one in busy),
        "held": p99 <= LATE_MS,
    }


def spread(values: Sequence[float]) -> str:
    return " / ".join(f"{np.percentile(values, share):.2f}" for share in (50, 90))


async def run(parts: Sequence[str]) -> None:
    """Print a table for each part."""
    with tempfile.TemporaryDirectory() as name:
        folder = released_folder(Path(name))
        if "cost" in parts:
            print_table("CPU and time", [await measure_cost(folder, num_streams) for num_streams in ROUNDS])
        if "held" in parts:
            rows = []
            for num_streams in HELD_STREAMS:
                rows.append(await measure_held(folder, num_streams))
                if not rows[-1]["held"]:
                    break
            print_table(f"Streams of {HELD_RATE:g} tokens a second", rows)
        if "history" in parts:
            print_table("A turn of a long conversation", [await measure_history(folder)])


def main() -> None:
    uvloop.run(run(sys.argv[1:] or ("cost", "held", "history")))


if __name__ == "__main__":
    main()
