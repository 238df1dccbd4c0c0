"""A round trip of one token while the caller sleeps or waits awake, by cores and carrier.

    python -m tests.bench.wire.waiting

The experts are those of the dispatch benchmark, one thread each. "apart": caller and shards are pinned to different
cores, as far as there are any; "one core": all share it; "free": nobody is pinned.
"""

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import torch
import uvloop

from services.attention.experts.waiting import AWAKE_S
from tests.bench.table import print_table
from tests.bench.wire.dispatch import HIDDEN, LAYER, NUM_EXPERTS, TOP_K, remote_experts, write_model
from tests.services.expert.serving import ExpertProcess

COUNT = 1500


async def _round_trips(model: Path, addresses: list[list[str]], carrier: str, awake_s: float) -> tuple[float, float]:
    """p50 and p99 in microseconds."""
    experts = remote_experts(model, addresses, carrier)  # type: ignore[arg-type]
    await experts.open()
    assert experts._wire is not None
    experts._wire.client.wait_awake(awake_s)
    hidden, weights = torch.randn(1, HIDDEN).bfloat16(), torch.rand(1, TOP_K)
    ids = torch.full((1, TOP_K), -1, dtype=torch.int32)
    for shard in range(len(addresses)):
        ids[:, shard] = shard * NUM_EXPERTS // len(addresses)
    seconds = []
    for step in range(COUNT):
        started = time.perf_counter()
        await experts.dispatch(step, LAYER, 0, hidden, ids, weights)
        seconds.append(time.perf_counter() - started)
    await experts.close()
    found = sorted(seconds[COUNT // 5 :])
    return found[len(found) // 2] * 1e6, found[len(found) * 99 // 100] * 1e6


def _pin(pid: int, cores: Sequence[int]) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        model = Path(folder) / "model"
        write_model(model)
        for num_shards in (1, 2):
            with ExitStack() as stack:
                addresses = [f"unix:{folder}/{num_shards}-{shard}" for shard in range(num_shards)]
                processes = [
                    stack.enter_context(ExpertProcess(model, address, shard, num_shards))
                    for shard, address in enumerate(addresses)
                ]
                for process in processes:
                    process.wait_for("ready")
                for where in ("free", "apart", "one core"):
                    for shard, process in enumerate(processes):
                        others = cores[1:] or cores
                        apart = [others[shard % len(others)]]
                        _pin(process.pid, {"free": cores, "apart": apart, "one core": cores[:1]}[where])
                    _pin(os.getpid(), cores if where == "free" else cores[:1])
                    for carrier in ("shared", "unix", "tcp"):
                        for waiting, awake_s in (("sleeps", 0.0), ("awake", AWAKE_S)):
                            p50, p99 = _measured(model, addresses, carrier, awake_s)
                            rows.append(
                                {
                                    "shards": num_shards,
                                    "cores": where,
                                    "carrier": carrier,
                                    "caller": waiting,
                                    "p50 us": f"{p50:.0f}",
                                    "p99 us": f"{p99:.0f}",
                                }
                            )
                _pin(os.getpid(), cores)
    print_table(f"One token on {len(cores)} cores", rows)


def _measured(model: Path, addresses: list[str], carrier: str, awake_s: float) -> tuple[float, float]:
    found: list[tuple[float, float]] = []

    async def measure() -> None:
        found.append(await _round_trips(model, [[address] for address in addresses], carrier, awake_s))

    thread = threading.Thread(target=uvloop.run, args=[measure()])
    thread.start()
    thread.join()
    return found[0]


if __name__ == "__main__":
    main()
