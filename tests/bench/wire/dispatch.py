"""Round trip of one dispatch: a layer's tokens to the expert processes and their sum back, by transport and size.

    python -m tests.bench.wire.dispatch [--carriers shared tcp ...] [--shards 1 2 4]

K2.6's hidden size in bf16, and for each token one expert a shard, so small that the wire remains; what the experts
take is measured by themselves and shown apart. The caller has an event loop in a thread of its own, as the engine does.
Beside it the floor: bare bytes of one shard between two processes in C++, over the same kind of connection.
"""

import argparse
import dataclasses
import os
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import torch
import uvloop

from services.attention.experts.experts import RemoteExperts
from services.checkpoint.placement import expert_placement
from services.local.random_checkpoint.dims import RandomDims, tiny_dims
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.checkpoint import Checkpoint
from services.wire.connect import TransportName
from tests.bench.table import print_table
from tests.services.expert import serving
from tests.services.expert.serving import ExpertProcess

HIDDEN, TOP_K, NUM_EXPERTS, LAYER, HOPS = 7168, 8, 16, 1, 60
NUM_TOKENS = (1, 8, 64)
NUM_SHARDS = (1, 2, 4)
CARRIERS = ("shared", "unix", "tcp", "sealed", "grpc")
FLOORS = ("shared", "unix", "tcp")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table, of one round trip.

    cpu_us      of the caller and all shards together, their experts' included
    compute_us  mean time that the slowest shard computes
    step_ms     median of 60 round trips, one after another
    """

    carrier: str
    num_shards: int
    num_tokens: int
    p50_us: float
    p99_us: float
    cpu_us: float
    compute_us: float = 0.0
    step_ms: float = 0.0


def measure(carriers: Sequence[str], shards: Sequence[int]) -> Iterator[Row]:
    """Start expert processes for each transport and number of shards; about ten seconds each on a quiet machine."""
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        yield from _floors(Path(folder))
        model = Path(folder) / "model"
        write_model(model)
        for carrier in carriers:
            for num_shards in shards:
                yield from _measure_carrier(model, Path(folder), carrier, num_shards)


def write_model(path: Path) -> None:
    """Write a checkpoint with K2.6's hidden size and tiny experts."""
    text = dataclasses.replace(
        tiny_dims().text,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        n_routed_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=32,
    )
    write_random_checkpoint(path, dims=RandomDims(text))


def _floors(folder: Path) -> Iterator[Row]:
    program = folder / "wire_floor"
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return
    source = Path(__file__).with_name("wire_floor.cpp")
    subprocess.run([compiler, "-O2", "-std=c++17", str(source), "-o", str(program)], check=True)
    for kind in FLOORS:
        for num_tokens in NUM_TOKENS:
            sizes = num_tokens * (HIDDEN * 2 + TOP_K * 8), num_tokens * HIDDEN * 4, _count(num_tokens)
            found = subprocess.run([program, kind, *map(str, sizes)], check=True, capture_output=True, text=True)
            p50, p99, cpu = map(float, found.stdout.split())
            yield Row(f"floor: bare {kind}", 1, num_tokens, p50, p99, cpu, step_ms=HOPS * p50 / 1e3)


def _measure_carrier(model: Path, folder: Path, carrier: str, num_shards: int) -> Iterator[Row]:
    serving.SEALS = carrier == "sealed"
    with ExitStack() as stack:
        processes = []
        for shard in range(num_shards):
            address = f"unix:{folder}/{carrier}{shard}"
            process = ExpertProcess(model, address, shard, num_shards, MOONSHARD_METRICS_LISTEN="127.0.0.1:0")
            processes.append(stack.enter_context(process))
        for process in processes:
            process.wait_for("ready")
        metrics = [process.wait_for("metrics")["address"] for process in processes]
        caller = Caller(model, processes, [f"http://{address}/metrics" for address in metrics], carrier)
        thread = threading.Thread(target=uvloop.run, args=[caller.run()])
        thread.start()
        thread.join()
        yield from caller.rows


class Caller:
    """Dispatches to running processes, as an engine does, and fills `rows`."""

    def __init__(self, model: Path, processes: list[ExpertProcess], metrics: list[str], carrier: str) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._processes = processes
        self._metrics = metrics
        self._carrier = carrier

    async def run(self) -> None:
        num_shards = len(self._processes)
        transport: Any = "tcp" if self._carrier == "sealed" else self._carrier
        experts = remote_experts(self._model, [[process.address] for process in self._processes], transport)
        await experts.open()
        for num_tokens in NUM_TOKENS:
            hidden = torch.randn(num_tokens, HIDDEN).bfloat16()
            ids = torch.full((num_tokens, TOP_K), -1, dtype=torch.int32)
            for shard in range(num_shards):
                ids[:, shard] = shard * NUM_EXPERTS // num_shards
            weights = torch.rand(num_tokens, TOP_K)
            before, cpu_s = self._computed(), self._cpu_s()
            seconds = []
            for step in range(_count(num_tokens)):
                started = time.perf_counter()
                await experts.dispatch(step, LAYER, 0, hidden, ids, weights)
                seconds.append(time.perf_counter() - started)
            cpu_us = (self._cpu_s() - cpu_s) / len(seconds) * 1e6
            after = self._computed()
            compute_us = max((b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(before, after, strict=True)) * 1e6
            steps = sorted(sum(seconds[at : at + HOPS]) for at in range(HOPS, len(seconds) - HOPS + 1, HOPS))
            step_ms = steps[len(steps) // 2] * 1e3 if steps else 0.0
            p50, p99 = _percentiles(sorted(seconds[len(seconds) // 10 :]))
            self.rows.append(Row(self._carrier, num_shards, num_tokens, p50, p99, cpu_us, compute_us, step_ms))
        await experts.close()

    def _computed(self) -> list[tuple[float, float]]:
        """The seconds and messages that each shard has computed so far."""
        found = []
        for url in self._metrics:
            with urllib.request.urlopen(url) as page:
                lines = [line for line in page.read().decode().splitlines() if not line.startswith("#")]
            values = dict(line.rsplit(" ", 1) for line in lines)
            name = "moonshard_expert_compute_seconds"
            found.append((float(values[f"{name}_sum"]), float(values[f"{name}_count"])))
        return found

    def _cpu_s(self) -> float:
        processes = [psutil.Process(), *(psutil.Process(process.pid) for process in self._processes)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)


def remote_experts(model: Path, addresses: list[list[str]], transport: TransportName) -> RemoteExperts:
    """A client of the shards of the benchmark's checkpoint."""
    placement = expert_placement(NUM_EXPERTS, len(addresses))
    digest = Checkpoint(model).digest()
    return RemoteExperts(addresses, placement, checkpoint_digest=digest, epoch=time.time_ns(), transport=transport)


def _count(num_tokens: int) -> int:
    return max(300, 3000 // num_tokens)


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    return seconds[len(seconds) // 2] * 1e6, seconds[len(seconds) * 99 // 100] * 1e6


def _cells(row: Row) -> dict[str, object]:
    return {
        "carrier": row.carrier,
        "shards": row.num_shards,
        "tokens": row.num_tokens,
        "p50 us": round(row.p50_us),
        "p99 us": round(row.p99_us),
        "CPU us, all processes": round(row.cpu_us),
        "experts, mean us": round(row.compute_us),
        "p50 without experts": round(row.p50_us - row.compute_us),
        "60 hops, ms": round(row.step_ms, 1),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--carriers", nargs="+", choices=CARRIERS, default=CARRIERS)
    parser.add_argument("--shards", nargs="+", type=int, default=NUM_SHARDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [_cells(row) for row in measure(options.carriers, options.shards)]
    print_table("Round trip of one dispatch, hidden size 7168, bf16", rows)


if __name__ == "__main__":
    main()
