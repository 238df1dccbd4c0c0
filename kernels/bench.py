"""`python -m kernels.bench`: checks every kernel on this GPU, then times it beside its floor and what PyTorch offers.

Without a GPU, or with --floors, it prints the floors that `roofline.py` predicts for an H200. Times are those of CUDA
graphs that hold several calls with rotating inputs: the median of their replays, and how far replays were apart.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from kernels import roofline
from kernels.bench_cases import SETS, Case, Run, cases
from kernels.bench_checks import checks
from kernels.choice import kernels_on
from kernels.roofline import Cost

SECONDS_PER_TIMING = 0.4  # so that the whole takes less than ten minutes
CALLS_PER_GRAPH = 6 * SETS
MOST_REPLAYS = 50


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median_s: float
    spread: float  # from the quickest to the slowest replay, as a part of the median


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--floors", action="store_true", help="print the predicted floors only")
    parser.add_argument("--only", default="", help="operations whose name begins with this")
    options = parser.parse_args(arguments)
    if options.floors or not torch.cuda.is_available():
        if not options.floors:
            sys.stdout.write("There is no GPU here, so nothing is measured; these are predicted floors of an H200.\n\n")
        sys.stdout.write(roofline.table())
        return 0
    return _measure(torch.device("cuda", torch.cuda.current_device()), options.only)


def _measure(device: torch.device, only: str) -> int:
    kernels = kernels_on(device)
    _print(header(device))
    all_passed = True
    for check in checks(kernels, device):
        if check.name.startswith(only):
            all_passed &= check.passed
            verdict = "right" if check.passed else "WRONG"
            _print(f"{verdict:6} {check.name:16} error {check.error:.1e}, limit {check.limit:.1e}")
    _print("\n| operation | contender | us | spread | MB | GFLOP | TB/s | TFLOP/s | of the floor |")
    _print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for case in cases(kernels, device):
            if case.name.startswith(only):
                for line in _rows(case):
                    _print(line)
    return 0 if all_passed else 1


def _rows(case: Case) -> list[str]:
    """A line for each contender; one that cannot run here says why."""
    lines = []
    for name, run in case.contenders.items():
        try:
            lines.append(row(case.name, name, case.cost, measured(run)))
        except (RuntimeError, NotImplementedError) as error:  # of memory, of a shape PyTorch does not take
            lines.append(f"| {case.name} | {name} | {str(error).splitlines()[0][:60]} | | | | | | |")
            torch.cuda.synchronize()
    return lines


def measured(run: Run) -> Timing:
    """The time of a call inside a CUDA graph, after calls that compile and choose algorithms."""
    for i in range(SETS):
        run(i)
    torch.cuda.synchronize()
    started = time.perf_counter()
    run(0)
    torch.cuda.synchronize()
    num_calls, num_replays = amounts(time.perf_counter() - started)
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


def amounts(call_s: float) -> tuple[int, int]:
    """Calls in a graph and replays of it, for a call that takes about so long."""
    num_calls = CALLS_PER_GRAPH if call_s < 2e-3 else SETS
    return num_calls, max(3, min(MOST_REPLAYS, int(SECONDS_PER_TIMING / (num_calls * call_s))))


def summary(seconds: Sequence[float]) -> Timing:
    """Median and spread of some replays."""
    median_s = statistics.median(seconds)
    return Timing(median_s, (max(seconds) - min(seconds)) / median_s)


def row(operation: str, contender: str, cost: Cost, timing: Timing) -> str:
    """One line of the table."""
    return (
        f"| {operation} | {contender} | {timing.median_s * 1e6:,.2f} | {timing.spread:.0%} "
        f"| {cost.num_bytes / 1e6:,.1f} | {cost.num_flops / 1e9:,.1f} "
        f"| {cost.num_bytes / timing.median_s / 1e12:.2f} | {cost.num_flops / timing.median_s / 1e12:.0f} "
        f"| {cost.floor_s / timing.median_s:.0%} |"
    )


def header(device: torch.device) -> str:
    """What was measured on: GPU, driver, versions."""
    import triton  # noqa: PLC0415 - only where there is a GPU

    properties = torch.cuda.get_device_properties(device)
    return (
        f"{time.strftime('%Y-%m-%d')}, {properties.name}, {properties.total_memory / 1e9:.0f} GB, "
        f"{properties.multi_processor_count} SMs; CUDA {torch.version.cuda}, driver {_driver()}, "
        f"PyTorch {torch.__version__}, Triton {triton.__version__}\n"
        f"Floors: {roofline.BYTES_PER_S / 1e12} TB/s and {roofline.FLOP_PER_S / 1e12:.0f} TFLOP/s, of an H200\n"
    )


def _driver() -> str:
    """Driver, clock and temperature as nvidia-smi says them."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,temperature.gpu", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
