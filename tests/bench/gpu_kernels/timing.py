"""How long a call takes inside a CUDA graph, and what this GPU can do at most."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from kernels.roofline import BYTES_PER_S, FLOP_PER_S, Cost

SETS = 3  # of inputs, that take turns, so that no call finds the bytes of the last one in the cache of the chip
CALLS_PER_GRAPH = 6 * SETS
MOST_REPLAYS = 50

Run = Callable[[int], object]
"""One call, with the input set of this number."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median_s: float
    spread: float  # from the quickest to the slowest replay, as a part of the median


@dataclass(frozen=True)
class Ceilings:
    """What this GPU reaches: bytes read, and products of bf16 matrices."""

    bytes_per_s: float = BYTES_PER_S
    flop_per_s: float = FLOP_PER_S

    def floor_s(self, cost: Cost) -> float:
        """Seconds that a cost takes here at least."""
        return max(cost.num_bytes / self.bytes_per_s, cost.num_flops / self.flop_per_s)


def ceilings(device: torch.device) -> Ceilings:
    """Measured with 4 GiB that are read and a product of 8192 x 8192 random numbers."""
    from tests.bench.gpu_kernels.reading import reader  # noqa: PLC0415 - brings Triton, which only a GPU needs

    a, b = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device=device)
    wake(lambda: a @ b)
    product = measured(lambda _: a @ b, 0.2)
    read, num_bytes = reader(torch.randint(0, 1 << 30, (1 << 30,), dtype=torch.int32, device=device))
    return Ceilings(num_bytes / measured(lambda _: read(), 0.2).median_s, 2 * 8192**3 / product.median_s)


def wake(work: Callable[[], object]) -> None:
    """A second of work: a GPU that idled runs at a fraction of its clock at first."""
    started = time.perf_counter()
    while time.perf_counter() - started < 1:
        for _ in range(20):
            work()
        torch.cuda.synchronize()


def measured(run: Run, seconds: float) -> Timing:
    """The time of a call inside a CUDA graph, after calls that compile and choose algorithms."""
    for i in range(SETS):
        run(i)
    torch.cuda.synchronize()
    started = time.perf_counter()
    run(0)
    torch.cuda.synchronize()
    num_calls, num_replays = amounts(time.perf_counter() - started, seconds)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(num_calls):
            run(i % SETS)
    graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(num_replays + 1)]  # type: ignore[no-untyped-call]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    return summary([first.elapsed_time(second) / 1e3 / num_calls for first, second in pairwise(marks)])


def amounts(call_s: float, seconds: float) -> tuple[int, int]:
    """Calls in a graph and replays of it, for a call that takes about so long, in so many seconds."""
    num_calls = CALLS_PER_GRAPH if call_s < 2e-3 else SETS
    return num_calls, max(3, min(MOST_REPLAYS, int(seconds / (num_calls * call_s))))


def summary(seconds: Sequence[float]) -> Timing:
    """Median and spread of some replays."""
    median_s = statistics.median(seconds)
    return Timing(median_s, (max(seconds) - min(seconds)) / median_s)
