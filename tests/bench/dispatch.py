"""Round trip of one dispatch: a layer's tokens to the expert processes and their sum back, by carrier and size.

    python -m tests.bench.dispatch

K2.6's hidden size in bf16, experts so small that the wire remains. The caller has an event loop in a thread of its own,
as the engine does.
"""

import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
import uvloop

from services.attention.dispatch import RemoteExperts
from services.attention.dispatch_replica import Transport
from services.local.random_checkpoint import write_random_checkpoint
from services.local.random_dims import RandomDims, tiny_dims
from services.model.checkpoint import Checkpoint
from services.model.placement import expert_placement
from tests.services.expert.serving import ExpertProcess

HIDDEN, TOP_K, NUM_EXPERTS, LAYER = 7168, 8, 16, 1
NUM_TOKENS = (1, 8, 32, 128, 512)
CARRIERS: tuple[tuple[Transport, str], ...] = (("unix", "unix"), ("grpc", "unix"), ("grpc", "tcp"))


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; times of one round trip, bytes of all its frames' tensors."""

    carrier: str
    num_shards: int
    num_tokens: int
    sent_bytes: int
    received_bytes: int
    p50_us: float
    p99_us: float


def measure() -> Iterator[Row]:
    """Starts expert processes for each carrier and number of shards; about a minute."""
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
            for num_shards in (1, 2):
                yield from _measure_carrier(model, Path(folder), transport, network, num_shards)


def _measure_carrier(model: Path, folder: Path, transport: Transport, network: str, num_shards: int) -> Iterator[Row]:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                ExpertProcess(
                    model, f"unix:{folder}/{shard}" if network == "unix" else "127.0.0.1:0", shard, num_shards
                )
            )
            for shard in range(num_shards)
        ]
        for process in processes:
            process.wait_for("ready")
        addresses = [[str(process.wait_for("listening")["address"])] for process in processes]
        rows: list[Row] = []
        work = _round_trips(model, addresses, transport, f"{transport} over {network}", rows)
        thread = threading.Thread(target=uvloop.run, args=[work])
        thread.start()
        thread.join()
        yield from rows


async def _round_trips(
    model: Path, addresses: list[list[str]], transport: Transport, carrier: str, rows: list[Row]
) -> None:
    experts = RemoteExperts(
        addresses,
        expert_placement(NUM_EXPERTS, len(addresses)),
        checkpoint_digest=Checkpoint(model).digest(),
        epoch=time.time_ns(),
        transport=transport,
    )
    await experts.open()
    for num_tokens in NUM_TOKENS:
        hidden = torch.randn(num_tokens, HIDDEN).bfloat16()
        ids = torch.stack([torch.randperm(NUM_EXPERTS, dtype=torch.int32)[:TOP_K] for _ in range(num_tokens)])
        # So that every token visits every shard.
        ids[:, 0], ids[:, 1] = 0, NUM_EXPERTS - 1
        weights = torch.rand(num_tokens, TOP_K)
        seconds = []
        for step in range(max(50, 1000 // num_tokens)):
            started = time.perf_counter()
            await experts.dispatch(step, LAYER, 0, hidden, ids, weights)
            seconds.append(time.perf_counter() - started)
        seconds = sorted(seconds[len(seconds) // 10 :])
        rows.append(
            Row(
                carrier,
                len(addresses),
                num_tokens,
                len(addresses) * num_tokens * (HIDDEN * 2 + TOP_K * 8),
                len(addresses) * num_tokens * HIDDEN * 4,
                seconds[len(seconds) // 2] * 1e6,
                seconds[len(seconds) * 99 // 100] * 1e6,
            )
        )
    await experts.close()


HEADINGS = "carrier         shards  tokens  sent KB  received KB   p50 us   p99 us"


def line(row: Row) -> str:
    """A row under HEADINGS."""
    kilobytes = f"{row.sent_bytes / 1e3:8.0f} {row.received_bytes / 1e3:12.0f}"
    return f"{row.carrier:<15} {row.num_shards:6} {row.num_tokens:7} {kilobytes} {row.p50_us:8.0f} {row.p99_us:8.0f}"


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print(HEADINGS)
    for row in measure():
        print(line(row), flush=True)


if __name__ == "__main__":
    main()
