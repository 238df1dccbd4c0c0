"""How long a dispatch stands still when its expert replica is lost, by transport and kind of loss.

    python -m tests.bench.wire.stalls

Two replicas of one shard; calls follow each other without a pause. Each loss hits a replica in mid-traffic; the longest
call around it is the stall. A stopped process is silent, so its calls are repeated after REPEAT_S.
"""

import asyncio
import itertools
import os
import signal
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.bench.table import print_table
from tests.services.attention.experts.dispatching import dispatch, remote
from tests.services.expert import serving
from tests.services.expert.serving import ExpertProcess, random_work

CARRIERS = ("shared", "unix", "tcp", "sealed", "grpc")
NUM_LOSSES = 5
REPEAT_S = 0.25
LOSSES = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGSTOP": signal.SIGSTOP}


async def stalls(model: Path, replicas: list[ExpertProcess], carrier: str, number: signal.Signals) -> list[float]:
    """Seconds of the longest call around each loss. Every sum must have the same bits."""
    experts = remote(model, [[replica.address for replica in replicas]], carrier, repeat_s=REPEAT_S)
    await experts.open()
    work = random_work(model, 1)
    expected = await dispatch(experts, work)
    found = []
    for victim, step in zip(itertools.cycle(replicas), range(NUM_LOSSES), strict=False):
        while not all(replica.live for calls in experts._shards for replica in calls.replicas):
            await dispatch(experts, work, step)
            await asyncio.sleep(0.01)
        longest_s, lost_s = 0.0, 0.0
        started_s = time.monotonic()
        while not lost_s or time.monotonic() < lost_s + 1.0:
            if not lost_s and time.monotonic() > started_s + 0.3:
                os.kill(victim.pid, number)
                lost_s = time.monotonic()
            began_s = time.monotonic()
            assert torch.equal(await dispatch(experts, work, step), expected)
            longest_s = max(longest_s, time.monotonic() - began_s) if lost_s else 0.0
        found.append(longest_s)
        if number is signal.SIGSTOP:
            os.kill(victim.pid, signal.SIGCONT)
        else:
            await asyncio.to_thread(victim.wait)
            victim.start()
    await experts.close()
    return found


def main() -> None:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="ms-") as folder:
        model = Path(folder) / "model"
        write_random_checkpoint(model)
        for carrier in CARRIERS:
            serving.SEALS = carrier == "sealed"
            for name, number in LOSSES.items():
                with ExitStack() as stack:
                    addresses = [f"unix:{folder}/{carrier}-{number}-{i}" for i in range(2)]
                    replicas = [stack.enter_context(ExpertProcess(model, address)) for address in addresses]
                    for replica in replicas:
                        replica.wait_for("ready")
                    found = sorted(asyncio.run(stalls(model, replicas, carrier, number)))
                rows.append(
                    {
                        "carrier": carrier,
                        "loss": name,
                        "stall p50 ms": f"{statistics.median(found) * 1e3:.1f}",
                        "longest ms": f"{found[-1] * 1e3:.1f}",
                        "losses": len(found),
                    }
                )
    print_table(f"The longest call around a loss; silent replicas are given up after {REPEAT_S:g} s", rows)


if __name__ == "__main__":
    main()
