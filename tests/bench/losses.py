"""1,000 streams in bfloat16 while every kind of process but the gateway is killed in turn: how many go on unchanged.

    python -m tests.bench.losses [NUMBER]

Each question is asked twice, first undisturbed; half of the streams are greedy, half are seeded.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.bench.table import print_table
from tests.cluster.harness import Cluster, small_topology
from tests.cluster.losses import BF16_TWICE, answers

NUM_STREAMS = 1000
NUM_TOKENS = 150
NUM_AT_ONCE = 16
VICTIMS = ("decode-0", "prefill-0", "decode-1", "expert-0-0", "redis-0", "decode-0", "tokenizer-0")


async def measure(cluster: Cluster, num_streams: int) -> list[dict[str, object]]:
    how = {"num_tokens": NUM_TOKENS, "num_at_once": NUM_AT_ONCE}
    started_s = time.monotonic()
    undisturbed = await answers(cluster, range(num_streams), **how)
    disturbed_s = time.monotonic()
    disturbed = await answers(cluster, range(num_streams), victims=VICTIMS, **how)
    num_same = sum(one == other for one, other in zip(disturbed, undisturbed, strict=True))
    kills = {victim: len(cluster.exit_codes(victim)) for victim in dict.fromkeys(VICTIMS)}
    return [
        {
            "streams": num_streams,
            "identical": num_same,
            "kills": ", ".join(f"{victim} {count}" for victim, count in kills.items()),
            "seconds undisturbed": round(disturbed_s - started_s),
            "seconds with kills": round(time.monotonic() - disturbed_s),
        }
    ]


def main() -> None:
    num_streams = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_STREAMS
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        write_random_checkpoint(model, dims="tiny", seed=1)
        with Cluster(small_topology(model, **BF16_TWICE), Path(folder) / "cluster.log") as cluster:
            cluster.wait_ready()
            rows = asyncio.run(measure(cluster, num_streams))
    print_table("Streams through kills", rows)


if __name__ == "__main__":
    main()
