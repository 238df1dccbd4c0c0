"""The cost of metrics and traces: clusters without traces, with 1 % and with all requests traced, in turns.

By the clock and by processor time, since the clock of a busy machine tells little. Metrics are always counted; what
one observation costs is shown beside them.
"""

import tempfile
import time
import timeit
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
import psutil
from prometheus_client import CollectorRegistry, Histogram

from services.local.random_checkpoint.write import write_random_checkpoint
from services.runtime.plain_histogram import Times
from tests.bench.table import print_table
from tests.cluster.harness import Cluster, small_topology
from tests.services.runtime.collector import Collector

ROUNDS, REQUESTS, TOKENS = 9, 4, 48
CASES = {
    "no traces": None,
    "1 % of requests": {"TRACE_SAMPLE_RATIO": "0.01"},
    "all requests": {"TRACE_SAMPLE_RATIO": "1"},
    "all requests and all steps": {"TRACE_SAMPLE_RATIO": "1", "TRACE_LAYER_RATIO": "1"},
}
BOUNDS = (0.0001, 0.001, 0.01, 0.1, 1.0)


def main() -> None:
    """Prints both tables."""
    _observations()
    with tempfile.TemporaryDirectory() as folder, Collector() as collector, ExitStack() as stack:
        model = Path(folder) / "tiny"
        write_random_checkpoint(model, dims="tiny", seed=1)
        clusters: dict[str, Cluster] = {}
        for number, (name, how) in enumerate(CASES.items()):
            traced = {} if how is None else {"TRACE_ENDPOINT": collector.url, **how}
            topology = small_topology(model, settings={"all": traced}, experts=1, prefills=0)
            clusters[name] = stack.enter_context(Cluster(topology, Path(folder) / f"{number}.log"))
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in clusters}
        for cluster in clusters.values():
            _round(cluster)
        for _ in range(ROUNDS):
            for name, cluster in clusters.items():
                measured[name].append(_round(cluster))
    rows = [
        {
            "traced": name,
            "tokens/s, median": f"{median(rate for rate, _ in rounds):.0f}",
            "from .. to": f"{min(rate for rate, _ in rounds):.0f} .. {max(rate for rate, _ in rounds):.0f}",
            "CPU ms a token, median": f"{median(cost for _, cost in rounds):.2f}",
            "from .. to ": f"{min(cost for _, cost in rounds):.2f} .. {max(cost for _, cost in rounds):.2f}",
        }
        for name, rounds in measured.items()
    ]
    print_table(f"Tracing: {ROUNDS} rounds of {REQUESTS} answers of {TOKENS} tokens, tiny model, 4 processes", rows)


def _round(cluster: Cluster) -> tuple[float, float]:
    """Tokens per second and milliseconds of processor time per token."""
    before, began_s = _cpu_s(cluster), time.perf_counter()
    body = {"model": "kimi-k2.6", "max_tokens": TOKENS, "ignore_eos": True}
    body |= {"messages": [{"role": "user", "content": "Say something."}]}
    num_tokens = 0
    with httpx.Client(base_url=cluster.url, timeout=120, trust_env=False) as http:
        for _ in range(REQUESTS):
            answer = http.post("/v1/chat/completions", json=body).raise_for_status().json()
            num_tokens += answer["usage"]["completion_tokens"]
    seconds = time.perf_counter() - began_s
    return num_tokens / seconds, 1000 * (_cpu_s(cluster) - before) / num_tokens


def _cpu_s(cluster: Cluster) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in cluster.pids.values()]
    return sum(process.user + process.system for process in times)


def _observations() -> None:
    ours, theirs = (
        Times(BOUNDS),
        Histogram("bench_seconds", "Of this table.", buckets=BOUNDS, registry=CollectorRegistry()),
    )
    rows = [
        {"histogram": name, "us an observation": f"{min(timeit.repeat(work, number=100_000, repeat=5)) * 10:.2f}"}
        for name, work in (("plain", lambda: ours.observe(0.02)), ("prometheus", lambda: theirs.observe(0.02)))
    ]
    print_table("One observation", rows)


if __name__ == "__main__":
    main()
