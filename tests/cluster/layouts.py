"""The same questions to clusters of different layouts: answers and their log probabilities must be equal to the bit.

    python -m tests.bench layouts
    python -m tests.cluster.layouts [NUMBER]

Both ask 1,000 questions in bfloat16 and float32, half greedy and half seeded, and count the answers that are equal.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from services.local.random_checkpoint.write import write_random_checkpoint
from tests.bench.table import print_table
from tests.cluster.harness import Cluster, small_topology
from tests.cluster.losses import ask_all, question

NUM_ANSWERS = 1000
NUM_TOKENS = 40
NUM_AT_ONCE = 16

# Each replica computes its prompts itself, unless they are computed apart.
LAYOUTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "in process": {"experts": 0, "prefills": 0},
    "1 shard": {"experts": 1, "prefills": 0},
    "2 shards": {"experts": 2, "prefills": 0},
    "4 shards": {"experts": 4, "prefills": 0},
    "prefill apart": {"experts": 2, "prefills": 1},
    "after a kill": {"experts": 2, "expert_replicas": 2, "prefills": 2, "decodes": 2},
}
VICTIMS: Final = {"after a kill": ("decode-0", "expert-0-0", "prefill-0", "decode-1", "expert-1-1")}


def choices(layout: str, dtype: str) -> dict[str, Any]:
    """Return the arguments of `small_topology` for a layout."""
    return {**LAYOUTS[layout], "settings": {"attention": {"DTYPE": dtype}}}


async def answers(
    cluster: Cluster, numbers: Sequence[int], *, num_tokens: int, num_at_once: int, victims: Sequence[str] = ()
) -> list[Any]:
    """Return the choices of answers by their questions' numbers, with log probabilities; `victims` as in `ask_all`."""

    async def ask(client: httpx.AsyncClient, number: int) -> Any:
        scored = {"logprobs": True, "top_logprobs": 3, "stream": False}
        response = await client.post("/v1/chat/completions", json={**question(number, num_tokens), **scored})
        assert response.status_code == 200, response.text
        return response.json()["choices"]

    return await ask_all(cluster, numbers, ask, num_at_once, victims)


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
