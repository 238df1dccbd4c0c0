"""Scale to zero on one machine: 200 requests over three cycles from zero and back. Seconds by the clock.

    python -m tests.bench.scale [FILE]     FILE: the demand that the gateway reported, twice a second, is written there

Every cycle begins with no process that computes. The first requests wake them; `ready` is when the last of them serves,
`first token` when the first request has one, `gone` how long after the last answer the last process has ended.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from protos.demand_pb2 import WatchDemandRequest
from protos.demand_pb2_grpc import DemandServiceStub
from services.autoscaler.gateways import total
from services.local.random_checkpoint.write import write_random_checkpoint
from services.runtime.channels import open_channel
from tests.bench.table import print_table
from tests.cluster.harness import Cluster, small_topology

NUM_REQUESTS = (67, 67, 66)
NUM_AT_ONCE = 8
IDLE_S = 3.0
TIMEOUT_S = 300.0
ALWAYS = {"redis-0", "tokenizer-0", "gateway", "autoscaler"}


class Load:
    """The clients of one cycle, and the times of what happened."""

    def __init__(self, cluster: Cluster) -> None:
        self.failures: list[str] = []
        self.seconds: list[float] = []
        self.first_s = 0.0
        self._cluster = cluster
        self._started_s = time.monotonic()

    async def run(self, num_requests: int) -> None:
        """Send all requests, this many at once."""
        numbers = iter(range(num_requests))
        async with httpx.AsyncClient(base_url=self._cluster.url, timeout=TIMEOUT_S, trust_env=False) as http:

            async def client() -> None:
                for number in numbers:
                    await self._ask(http, number)

            await asyncio.gather(*(client() for _ in range(NUM_AT_ONCE)))

    async def _ask(self, http: httpx.AsyncClient, number: int) -> None:
        asked_s = time.monotonic()
        messages = [{"role": "user", "content": f"Question {number}: " + "tell me more. " * (number % 20)}]
        body = {"model": "kimi-k2.6", "messages": messages, "max_tokens": 24, "stream": True, "ignore_eos": True}
        done = False
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {") and not self.first_s:
                        self.first_s = time.monotonic() - self._started_s
                    if response.status_code != 200 or '"error"' in line:
                        self.failures.append(line)
                    done = done or line == "data: [DONE]"
        except httpx.HTTPError as error:
            self.failures.append(repr(error))
        if not done:
            self.failures.append("no end")
        self.seconds.append(time.monotonic() - asked_s)


async def measure(cluster: Cluster) -> list[dict[str, object]]:
    """One row a cycle."""
    rows = []
    for cycle, num_requests in enumerate(NUM_REQUESTS, 1):
        assert set(cluster.pids) == ALWAYS
        load, started_s = Load(cluster), time.monotonic()
        running = asyncio.create_task(load.run(num_requests))
        ready_s = await _until(lambda: len(cluster.ready()) == len(cluster.names)) - started_s
        await running
        ended_s = time.monotonic()
        gone_s = await _until(lambda: set(cluster.pids) == ALWAYS) - ended_s
        late = statistics.median(sorted(load.seconds)[NUM_AT_ONCE // 2 : -NUM_AT_ONCE])
        rows.append(
            {
                "cycle": cycle,
                "requests": num_requests,
                "failed": len(load.failures),
                "ready s": f"{ready_s:.1f}",
                "first token s": f"{load.first_s:.1f}",
                "median answer awake s": f"{late:.2f}",
                "gone s": f"{gone_s:.1f}",
            }
        )
        for failure in load.failures:
            print(failure)
    return rows


async def record(cluster: Cluster, recorded: list[Any]) -> None:
    """Record the demand that the autoscaler receives, twice a second."""
    started_s = time.monotonic()
    recorded.append([0.0, {}])
    async with open_channel(cluster.setting("gateway", "DEMAND_LISTEN")) as channel:
        async for response in DemandServiceStub(channel).Watch(WatchDemandRequest(every_s=0.5)):
            at_s = round(time.monotonic() - started_s, 2)
            roles = {
                role: {name: value for name, value in asdict(of).items() if value}
                for role, of in total([response]).items()
            }
            roles = {role: of for role, of in roles.items() if of}
            if at_s - recorded[-1][0] >= 0.5 and roles != recorded[-1][1]:
                recorded.append([at_s, roles])


async def _until(condition: Callable[[], bool]) -> float:
    """Return when the condition became true."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.05)
    return time.monotonic()


async def run(cluster: Cluster, recorded: list[Any]) -> list[dict[str, object]]:
    """Measure, and record the demand meanwhile."""
    recording = asyncio.create_task(record(cluster, recorded))
    try:
        return await measure(cluster)
    finally:
        recording.cancel()
        with suppress(asyncio.CancelledError):
            await recording


def main() -> None:
    """Starts a tiny cluster: one process each of prefill, decode and expert."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        model = Path(folder) / "model"
        write_random_checkpoint(model)
        topology = small_topology(model, experts=1, idle_s=IDLE_S)
        with Cluster(topology, Path(folder) / "cluster.log") as cluster:
            recorded: list[Any] = []
            rows = asyncio.run(run(cluster, recorded))
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text("[\n" + ",\n".join(json.dumps(line) for line in recorded) + "\n]\n")
    print_table("scale to zero", rows)


if __name__ == "__main__":
    main()
