"""How often a model answers held-out samples of Nano's skills rightly: `python -m tests.bench.nano FOLDER`.

FOLDER is a checkpoint, of which a cluster is started, or the URL of a gateway. Every skill is examined with and without
thoughts, through the REST API, at the recommended sampling settings. With `--out`, what was answered is kept as lines
of JSON, and a run that was interrupted goes on.
"""

import argparse
import asyncio
import itertools
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import httpx

from services.local.topology import Topology
from tests.bench.nano_examiner import EXAMINED, TIMEOUT_S, cases, examine
from tests.bench.table import print_table
from tests.cluster.harness import Cluster

# Percent; the others' is 90.
TARGET = 90
TARGETS = dict.fromkeys(("compare", "recall", "forgotten", "tools_call", "tools_none", "image", "two_images"), 95)


class Record:
    """The answers so far, also written as lines of a file if there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, skill: str, seed: int) -> bool:
        return any(row["skill"] == skill and row["seed"] == seed for row in self.rows)

    def add(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


async def run(url: str, skills: Sequence[str], num_cases: int, num_at_once: int, record: Record, greedy: bool) -> None:
    """Ask `num_at_once` questions at a time, each skill in turn, so that an interrupted run has some of every skill."""
    wanted = [
        [(skill, seed, sample) for seed, sample in itertools.islice(cases(skill, thinking=thinking), num_cases)]
        for skill in skills
        for thinking in (True, False)
    ]
    questions = itertools.chain.from_iterable(zip(*wanted, strict=True))
    waiting = iter([question for question in questions if not record.has(question[0], question[1])])

    async def work(http: httpx.AsyncClient) -> None:
        for skill, seed, sample in waiting:
            verdict = await examine(http, sample, seed, greedy=greedy)
            record.add({"skill": skill, "seed": seed, "thinking": sample.thinking, **asdict(verdict)})

    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http, asyncio.TaskGroup() as group:
        for _ in range(num_at_once):
            group.create_task(work(http))


def rows(record: Record, skills: Sequence[str]) -> list[dict[str, object]]:
    """The table: one row per skill and mode."""
    return [
        {
            "skill": skill,
            "mode": "thinking" if thinking else "instant",
            "cases": len(own),
            "right %": percent([row["right"] for row in own]),
            "target %": TARGETS.get(skill, TARGET),
            "right tool %": percent([row["tool"] for row in own if row["tool"] is not None]),
            "schema-valid %": percent([row["valid"] for row in own if row["valid"] is not None]),
        }
        for skill in skills
        for thinking in (True, False)
        if (own := [row for row in record.rows if row["skill"] == skill and row["thinking"] == thinking])
    ]


def percent(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else ""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nano", description=__doc__)
    parser.add_argument("model", help="folder of a checkpoint, or the URL of a gateway")
    parser.add_argument("--cases", type=int, default=200, help="of each skill and mode (default: 200)")
    parser.add_argument("--skills", nargs="+", choices=EXAMINED, default=list(EXAMINED))
    parser.add_argument("--at-once", type=int, default=4, help="questions at a time (default: 4)")
    parser.add_argument("--greedy", action="store_true", help="at temperature 0")
    parser.add_argument("--out", type=Path, help="file of answers, which is gone on with if it exists")
    args = parser.parse_args()
    record = Record(args.out)
    with ExitStack() as stack:
        url = args.model
        if not url.startswith("http"):
            log_path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cluster.log"
            # As few processes as can be: what is answered does not depend on them.
            topology = Topology(Path(args.model), experts=0, prefills=0, visions=1)
            url = stack.enter_context(Cluster(topology, log_path)).url
        asyncio.run(run(url, args.skills, args.cases, args.at_once, record, args.greedy))
    print_table("Held-out samples through the gateway", rows(record, args.skills))


if __name__ == "__main__":
    main()
