"""How many of 1,000 answers are equal to the bit over six layouts of a cluster, in bfloat16 and float32.

    python -m tests.bench.layouts [NUMBER]

Half of the answers are greedy, half are seeded; log probabilities are compared too.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.bench.table import print_table
from tests.cluster.harness import Cluster, small_topology
from tests.cluster.layouts import LAYOUTS, VICTIMS, answers, choices

NUM_ANSWERS = 1000
NUM_TOKENS = 40
NUM_AT_ONCE = 16


def measure(model: Path, layout: str, dtype: str, num_answers: int) -> tuple[list[Any], int]:
    """Return the answers of a layout, and the number of processes that were killed under them."""
    victims = VICTIMS.get(layout, ())
    with Cluster(small_topology(model, **choices(layout, dtype)), model.parent / "cluster.log") as cluster:
        cluster.wait_ready()
        how: dict[str, Any] = {"num_tokens": NUM_TOKENS, "num_at_once": NUM_AT_ONCE, "victims": victims}
        found = asyncio.run(answers(cluster, range(num_answers), **how))
        return found, sum(len(cluster.exit_codes(victim)) for victim in victims)


def main() -> None:
    num_answers = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_ANSWERS
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny"
        write_random_checkpoint(model, dims="tiny", seed=1)
        for dtype in ("bfloat16", "float32"):
            first: list[Any] = []
            for layout in LAYOUTS:
                started_s = time.monotonic()
                found, num_kills = measure(model, layout, dtype, num_answers)
                first = first or found
                num_same = sum(one == other for one, other in zip(found, first, strict=True))
                seconds = round(time.monotonic() - started_s)
                row = {"identical": num_same, "answers": num_answers, "kills": num_kills, "seconds": seconds}
                rows.append({"dtype": dtype, "layout": layout, **row})
                sys.stderr.write(f"{rows[-1]}\n")
    print_table("Answers over layouts", rows)


if __name__ == "__main__":
    main()
