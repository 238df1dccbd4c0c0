"""Round trip of one dispatch: a layer's tokens to the expert processes and their sum back, by transport and size.

    python -m tests.bench.dispatch

K2.6's hidden size in bf16, and for each token one expert a shard, so small that the wire remains; what the experts
take is measured by themselves and shown apart. The caller has an event loop in a thread of its own, as the engine does.
"""

import dataclasses
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import uvloop

from services.attention.experts.experts import RemoteExperts
from services.attention.experts.transports import TransportName
from services.checkpoint.placement import expert_placement
from services.local.random_checkpoint.dims import RandomDims, tiny_dims
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.checkpoint import Checkpoint
from tests.bench.socket_floor import round_trips
from tests.bench.table import print_table
from tests.services.expert.serving import ExpertProcess

HIDDEN, TOP_K, NUM_EXPERTS, LAYER = 7168, 8, 16, 1
NUM_TOKENS = (1, 8, 32, 128, 512)
NUM_SHARDS = (1, 2)
CARRIERS: tuple[tuple[TransportName, str], ...] = (("unix", "unix"), ("tcp", "tcp"), ("grpc", "unix"), ("grpc", "tcp"))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; of one round trip the times and the bytes of all its frames' tensors.

    compute_us  mean time that the slowest shard computes, of the round trip
    """

    carrier: str
    num_shards: int
    num_tokens: int
    sent_bytes: int
    received_bytes: int
    p50_us: float
    p99_us: float
    compute_us: float


def measure() -> Iterator[Row]:
    """Start expert processes for each transport and number of shards; about a minute on a quiet machine."""
    yield from (_floor(num_tokens) for num_tokens in NUM_TOKENS)
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        model = Path(folder) / "model"
        text = dataclasses.replace(
            tiny_dims().text,
            hidden_size=HIDDEN,
            num_hidden_layers=2,
            n_routed_experts=NUM_EXPERTS,
            num_experts_per_tok=TOP_K,
            moe_intermediate_size=32,
        )
        write_random_checkpoint(model, dims=RandomDims(text))
        for transport, network in CARRIERS:
            for num_shards in NUM_SHARDS:
                yield from _measure_carrier(model, Path(folder), transport, network, num_shards)


def _measure_carrier(
    model: Path, folder: Path, transport: TransportName, network: str, num_shards: int
) -> Iterator[Row]:
    with ExitStack() as stack:
        processes = []
        for shard in range(num_shards):
            address = f"unix:{folder}/{shard}" if network == "unix" else "127.0.0.1:0"
            process = ExpertProcess(model, address, shard, num_shards, MOONSHARD_METRICS_LISTEN="127.0.0.1:0")
            processes.append(stack.enter_context(process))
        for process in processes:
            process.wait_for("ready")
        listening = [process.wait_for("listening") for process in processes]
        metrics = [process.wait_for("metrics") for process in processes]
        rows: list[Row] = []
        work = _round_trips(
            model,
            [[str(line["address"])] for line in listening],
            [f"http://{line['address']}/metrics" for line in metrics],
            transport,
            f"{transport} over {network}",
            rows,
        )
        thread = threading.Thread(target=uvloop.run, args=[work])
        thread.start()
        thread.join()
        yield from rows


async def _round_trips(
    model: Path, addresses: list[list[str]], metrics: list[str], transport: TransportName, carrier: str, rows: list[Row]
) -> None:
    num_shards = len(addresses)
    experts = RemoteExperts(
        addresses,
        expert_placement(NUM_EXPERTS, num_shards),
        checkpoint_digest=Checkpoint(model).digest(),
        epoch=time.time_ns(),
        transport=transport,
    )
    await experts.open()
    for num_tokens in NUM_TOKENS:
        hidden = torch.randn(num_tokens, HIDDEN).bfloat16()
        ids = torch.full((num_tokens, TOP_K), -1, dtype=torch.int32)
        for shard in range(num_shards):
            ids[:, shard] = shard * NUM_EXPERTS // num_shards
        weights = torch.rand(num_tokens, TOP_K)
        before = [_compute(url) for url in metrics]
        seconds = []
        for step in range(_count(num_tokens)):
            started = time.perf_counter()
            await experts.dispatch(step, LAYER, 0, hidden, ids, weights)
            seconds.append(time.perf_counter() - started)
        after = [_compute(url) for url in metrics]
        seconds = sorted(seconds[len(seconds) // 10 :])
        rows.append(
            Row(
                carrier,
                num_shards,
                num_tokens,
                num_shards * num_tokens * (HIDDEN * 2 + TOP_K * 8),
                num_shards * num_tokens * HIDDEN * 4,
                *_percentiles(seconds),
                max((b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(before, after, strict=True)) * 1e6,
            )
        )
    await experts.close()


def _compute(url: str) -> tuple[float, float]:
    """Return the seconds and messages that a shard has computed so far."""
    with urllib.request.urlopen(url) as page:
        values = dict(line.rsplit(" ", 1) for line in page.read().decode().splitlines() if not line.startswith("#"))
    name = "moonshard_expert_compute_seconds"
    return float(values[f"{name}_sum"]), float(values[f"{name}_count"])


def _floor(num_tokens: int) -> Row:
    """One shard's bytes without anything around them."""
    num_sent, num_received = num_tokens * (HIDDEN * 2 + TOP_K * 8), num_tokens * HIDDEN * 4
    seconds = round_trips(num_sent, num_received, _count(num_tokens))
    return Row("bare socket", 1, num_tokens, num_sent, num_received, *_percentiles(seconds), 0.0)


def _count(num_tokens: int) -> int:
    return max(100, 2000 // num_tokens)


def _percentiles(seconds: list[float]) -> tuple[float, float]:
    return seconds[len(seconds) // 2] * 1e6, seconds[len(seconds) * 99 // 100] * 1e6


def _cells(row: Row) -> dict[str, object]:
    return {
        "carrier": row.carrier,
        "shards": row.num_shards,
        "tokens": row.num_tokens,
        "KB sent": round(row.sent_bytes / 1e3),
        "KB received": round(row.received_bytes / 1e3),
        "p50 us": round(row.p50_us),
        "p99 us": round(row.p99_us),
        "of it experts, mean us": round(row.compute_us),
    }


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print_table("Round trip of one dispatch, hidden size 7168, bf16", [_cells(row) for row in measure()])


if __name__ == "__main__":
    main()
