"""Nano under full load for a long time, clients leaving at any moment: memory stays flat and every answer right.

python -m tests.bench.abuse.soak [MINUTES]
"""

import asyncio
import sys
import time
from collections.abc import Sequence

import httpx
import numpy as np

from tests.bench.abuse.traffic import Tally, clients
from tests.bench.served import ErrorLines, Held, held_by, served_nano
from tests.bench.table import print_table
from tests.cluster.harness import Cluster

NUM_CLIENTS = 16
SHARE_LEAVING = 0.4
EVERY_S = 10.0
WARM_SHARE = 1 / 3  # of the time; caches fill and allocators settle meanwhile
MINUTES = 30.0
MIB = 1 << 20


Samples = dict[str, list[tuple[float, Held]]]


async def sample(cluster: Cluster, samples: Samples, errors: ErrorLines) -> None:
    """Note what every process holds until it is cancelled."""
    while True:
        await asyncio.to_thread(errors.read)
        for name, pid in cluster.pids.items():
            samples.setdefault(name, []).append((time.monotonic(), await asyncio.to_thread(held_by, pid)))
        await asyncio.sleep(EVERY_S)


async def run(cluster: Cluster, minutes: float, tally: Tally, samples: Samples, errors: ErrorLines) -> None:
    sampling = asyncio.create_task(sample(cluster, samples, errors))
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=300, trust_env=False, limits=limits) as http:
        await clients(http, NUM_CLIENTS, 60 * minutes, SHARE_LEAVING, tally)
    sampling.cancel()


def row(name: str, samples: Sequence[tuple[float, Held]]) -> dict[str, object]:
    """The table's row of a process: its memory, and its growth after the warm-up, by least squares."""
    start_s = samples[0][0]
    warm = [one for one in samples if one[0] - start_s >= WARM_SHARE * (samples[-1][0] - start_s)]
    hours = np.array([(at_s - start_s) / 3600 for at_s, _ in warm])
    pss = np.array([held.pss_bytes / MIB for _, held in warm])
    third = max(1, len(warm) // 3)
    slope = float(np.polyfit(hours, pss, 1)[0]) if len(warm) > 2 else float("nan")
    return {
        "process": name,
        "PSS MiB at first": round(samples[0][1].pss_bytes / MIB),
        "warm": round(float(np.median(pss[:third])), 1),
        "at the end": round(float(np.median(pss[-third:])), 1),
        "MiB an hour": round(slope, 1),
        "RSS MiB at the end": round(warm[-1][1].rss_bytes / MIB),
        "files warm, at the end": f"{warm[0][1].num_files}, {warm[-1][1].num_files}",
    }


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES
    tally, samples = Tally(), Samples()
    with served_nano() as cluster:
        errors = ErrorLines(cluster)
        asyncio.run(run(cluster, minutes, tally, samples, errors))
        errors.read()
    print_table(f"Memory in {minutes:g} minutes of full load", [row(name, own) for name, own in samples.items()])
    print_table("Answers", [{**dict(sorted(tally.counts.items())), "ERROR lines": len(errors.found)}])
    print("\n".join(["", *tally.notes, *errors.found[:20]]))


if __name__ == "__main__":
    main()
