"""`python -m tests.bench.gpu_kernels`: check every kernel on this GPU, then time it beside its floor and PyTorch.

Without a GPU, or with --floors, it prints the floors that `kernels/roofline.py` predicts for an H200. Times are medians
and spreads over the replays of CUDA graphs that hold several calls with rotating inputs.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from kernels import roofline
from kernels.choice import kernels_on
from kernels.interface import Kernels
from tests.bench.gpu_kernels.case import FULL, QUICK, Case, Plan
from tests.bench.gpu_kernels.checks import checks
from tests.bench.gpu_kernels.timing import Ceilings, Timing, ceilings, measured


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu_kernels", description=__doc__)
    parser.add_argument("--floors", action="store_true", help="print the predicted floors only")
    parser.add_argument("--checks", action="store_true", help="check only, time nothing")
    parser.add_argument("--times", action="store_true", help="time only, check nothing")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and short timings: about 100 seconds")
    parser.add_argument("--warm", action="store_true", help="run what would be timed once: compiles, times nothing")
    parser.add_argument("--compile", action="store_true", help="with torch.compile beside PyTorch, some minutes more")
    parser.add_argument("--only", default="", help="operations whose name begins with one of these, comma between them")
    options = parser.parse_args(arguments)
    if options.floors or not torch.cuda.is_available():
        if not options.floors:
            sys.stdout.write("There is no GPU here, so nothing is measured; these are predicted floors of an H200.\n\n")
        sys.stdout.write(roofline.table())
        return 0
    device = torch.device("cuda", torch.cuda.current_device())
    kernels = kernels_on(device)
    _print(header(device))
    only = tuple(options.only.split(","))
    plan = QUICK if options.quick else FULL
    if options.warm:
        return _warm(kernels, device, only, plan)
    all_right = options.times or _check(kernels, device, only)
    if not options.checks:
        _time(kernels, device, only, plan, compiled=options.compile)
    return 0 if all_right else 1


def _warm(kernels: Kernels, device: torch.device, only: tuple[str, ...], plan: Plan) -> int:
    from tests.bench.gpu_kernels.cases import cases  # noqa: PLC0415 - brings Triton, which only a GPU needs

    with torch.inference_mode():
        for case in cases(kernels, device, plan, only):
            for name, run in case.contenders.items():
                try:
                    run(0)
                    torch.cuda.synchronize()
                except (RuntimeError, NotImplementedError) as error:
                    _print(f"{case.name}, {name}: {error}")
            del case
    return 0


def _check(kernels: Kernels, device: torch.device, only: tuple[str, ...]) -> bool:
    all_right = True
    for check in checks(kernels, device, only):
        all_right &= check.passed
        verdict = "right" if check.passed else "WRONG"
        _print(f"{verdict:6} {check.name:16} error {check.error:.1e}, limit {check.limit:.1e} {check.said}")
    _print("")
    return all_right


def _time(kernels: Kernels, device: torch.device, only: tuple[str, ...], plan: Plan, *, compiled: bool) -> None:
    from tests.bench.gpu_kernels.cases import cases  # noqa: PLC0415 - brings Triton, which only a GPU needs

    here = ceilings(device)
    _print(f"Ceilings: reading {here.bytes_per_s / 1e12:.2f} TB/s, bf16 product {here.flop_per_s / 1e12:.0f} TFLOP/s\n")
    _print("| operation | contender | us | spread | MB | GFLOP | TB/s | TFLOP/s | of the floor |")
    _print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for case in cases(kernels, device, plan, only):
            for line in _rows(case.compiled_too() if compiled else case, plan.seconds, here):
                _print(line)
            del case  # and its inputs, before the next are made


def _rows(case: Case, seconds: float, here: Ceilings) -> list[str]:
    """A line for each contender; one that cannot run here says why."""
    lines = []
    for name, run in case.contenders.items():
        try:
            lines.append(row(case, name, measured(run, seconds), here))
        except (RuntimeError, NotImplementedError) as error:  # of memory, of a shape PyTorch does not take
            reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
            lines.append(f"| {case.name} | {name} | {reason} | | | | | | |")
            torch.cuda.synchronize()
    return lines


def row(case: Case, contender: str, timing: Timing, here: Ceilings) -> str:
    """One line of the table."""
    cost = case.cost
    return (
        f"| {case.name} | {contender} | {timing.median_s * 1e6:,.2f} | {timing.spread:.0%} "
        f"| {cost.num_bytes / 1e6:,.1f} | {cost.num_flops / 1e9:,.1f} "
        f"| {cost.num_bytes / timing.median_s / 1e12:.2f} | {cost.num_flops / timing.median_s / 1e12:.0f} "
        f"| {case.floor_s(here) / timing.median_s:.0%} |"
    )


def header(device: torch.device) -> str:
    """What was measured on: GPU, driver, versions."""
    import triton  # noqa: PLC0415 - only where there is a GPU

    properties = torch.cuda.get_device_properties(device)
    return (
        f"{time.strftime('%Y-%m-%d')}, {properties.name}, {properties.total_memory / 1e9:.0f} GB, "
        f"{properties.multi_processor_count} SMs; CUDA {torch.version.cuda}, driver {_driver()}, "
        f"PyTorch {torch.__version__}, Triton {triton.__version__}\n"
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
