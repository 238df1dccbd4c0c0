"""The CPU kernels at the sizes of K2.6 against this machine's own limits: `python -m tests.bench.cpu_kernels`.

Limits are measured in the same run: what a plain read of memory and PyTorch's float32 product reach. Every weight is
read from memory, not from a cache: the weights of one row rotate through more bytes than the last cache holds.
Times are the best of several calls, because a busy neighbour only ever adds.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import kernels
from kernels.interface import Kernels
from kernels.portable import text as portable

HIDDEN, WIDTH = 7168, 2048
HEADS, LATENT, ROPE, BLOCK_TOKENS = 64, 512, 64, 64
SECONDS = 0.4  # spent on each row of the table
COLD_BYTES = 100e6  # weights that a row rotates through


def best_s(call: Callable[[], Any], at_least: int = 3) -> float:
    """Seconds of the fastest of many calls."""
    call()
    best, spent, count = float("inf"), 0.0, 0
    while spent < SECONDS or count < at_least:
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        best, spent, count = min(best, took), spent + took, count + 1
    return best


class Table:
    """Prints one row per measurement, with its share of the machine's limits."""

    def __init__(self, read_rate: float, flop_rate: float) -> None:
        self._read_rate, self._flop_rate = read_rate, flop_rate
        self._write(("what", "tokens", "us", "GB/s", "of read", "GFLOP/s", "of fp32 GEMM"))

    def row(self, what: str, tokens: int, seconds: float, num_bytes: float, num_flops: float) -> None:
        """Adds a measurement; bytes count the weights or the cache, each once."""
        read, flop = num_bytes / seconds, num_flops / seconds
        shares = (f"{read / self._read_rate:.0%}", f"{flop / self._flop_rate:.0%}")
        self._write(
            (what, tokens, f"{seconds * 1e6:.0f}", f"{read / 1e9:.1f}", shares[0], f"{flop / 1e9:.1f}", shares[1])
        )

    def _write(self, cells: Sequence[object]) -> None:
        sys.stdout.write(f"{cells[0]:<44}" + "".join(f"{cell:>13}" for cell in cells[1:]) + "\n")
        sys.stdout.flush()


def int4(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A random matrix in the format of the checkpoint."""
    words = torch.randint(-(2**31), 2**31, (rows, columns // 8)).int()
    return words, (torch.rand(rows, columns // 32) * 0.01 + 0.005).bfloat16()


def random_experts(count: int) -> Iterator[tuple[Tensor, ...]]:
    """Random experts of K2.6's size."""
    for _ in range(count):
        yield (*int4(WIDTH, HIDDEN), *int4(WIDTH, HIDDEN), *int4(HIDDEN, WIDTH))


def bench_experts(table: Table, name: str, which: Kernels, dtype: torch.dtype, token_counts: Sequence[int]) -> None:
    """All tokens of a message at one expert, another expert each time."""
    num_bytes = 3 * HIDDEN * WIDTH * 0.5625
    count = max(2, int(COLD_BYTES / num_bytes))
    experts = which.pack_experts(random_experts(count))
    turn = cycle(range(count))
    for tokens in token_counts:
        x, weights = torch.randn(tokens, HIDDEN).to(dtype), torch.ones(tokens, 1)

        def call(x: Tensor = x, weights: Tensor = weights, tokens: int = tokens) -> None:
            ids = torch.full((tokens, 1), next(turn), dtype=torch.int32)
            which.expert_mlp(x, ids, weights, experts)

        table.row(name, tokens, best_s(call), num_bytes, 6 * tokens * HIDDEN * WIDTH)


def bench_linear(table: Table, name: str, which: Kernels, dtype: torch.dtype, token_counts: Sequence[int]) -> None:
    """A square weight, another copy each time."""
    num_bytes = 2 * HIDDEN * HIDDEN
    plain = (torch.randn(HIDDEN, HIDDEN) * 0.02).bfloat16()
    turn = cycle([which.pack_linear(plain) for _ in range(max(1, round(COLD_BYTES / num_bytes)))])
    for tokens in token_counts:
        x = torch.randn(tokens, HIDDEN).to(dtype)
        seconds = best_s(lambda x=x: which.linear(x, next(turn)), at_least=1)  # type: ignore[misc]
        table.row(name, tokens, seconds, num_bytes, 2 * tokens * HIDDEN * HIDDEN)


def bench_onednn(table: Table, token_counts: Sequence[int]) -> None:
    """oneDNN's pre-packed bfloat16 product, where it accepts this CPU."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return
    plain = (torch.randn(HIDDEN, HIDDEN) * 0.02).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(plain, None)
    for tokens in token_counts:
        x = torch.randn(tokens, HIDDEN).bfloat16()
        seconds = best_s(lambda x=x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))  # type: ignore[misc]
        table.row("the same, oneDNN bfloat16", tokens, seconds, plain.nbytes, 2 * tokens * HIDDEN * HIDDEN)


def bench_decode(table: Table, name: str, which: Kernels, dtype: torch.dtype, rows: int, context: int) -> None:
    """Absorbed attention of some rows, each with its own context."""
    blocks = context // BLOCK_TOKENS
    cache = torch.randn(rows * blocks, BLOCK_TOKENS, LATENT + ROPE).to(dtype)
    tables = torch.randperm(rows * blocks).int().view(rows, blocks)
    lens = torch.full((rows,), context, dtype=torch.int32)
    q = torch.randn(rows, HEADS, LATENT + ROPE).to(dtype)
    seconds = best_s(lambda: which.mla_decode(q[..., :LATENT], q[..., LATENT:], cache, tables, lens, 0.1447))
    num_flops = 2 * rows * context * HEADS * (2 * LATENT + ROPE)
    table.row(name, rows, seconds, cache.nbytes, num_flops)


def candidate_rates(which: Kernels) -> dict[str, float]:
    """GFLOP/s in bfloat16 of what a step of a large model does most: few and many tokens at experts and linears."""
    rates: dict[str, float] = {}
    experts = which.pack_experts(random_experts(1))
    weight = which.pack_linear((torch.randn(HIDDEN, WIDTH) * 0.02).bfloat16())
    for tokens in (1, 8, 64):
        x, narrow = torch.randn(tokens, HIDDEN).bfloat16(), torch.randn(tokens, WIDTH).bfloat16()
        ids, weights = torch.zeros(tokens, 1, dtype=torch.int32), torch.ones(tokens, 1)
        seconds = best_s(lambda x=x, i=ids, w=weights: which.expert_mlp(x, i, w, experts))  # type: ignore[misc]
        rates[f"expert x{tokens}"] = 6 * tokens * HIDDEN * WIDTH / seconds / 1e9
        seconds = best_s(lambda n=narrow: which.linear(n, weight))  # type: ignore[misc]
        rates[f"linear x{tokens}"] = 2 * tokens * HIDDEN * WIDTH / seconds / 1e9
    cache, tables = torch.randn(32, BLOCK_TOKENS, LATENT + ROPE).bfloat16(), torch.arange(32).int()[None]
    q, lens = torch.randn(1, HEADS, LATENT + ROPE).bfloat16(), torch.tensor([2048], dtype=torch.int32)
    seconds = best_s(lambda: which.mla_decode(q[..., :LATENT], q[..., LATENT:], cache, tables, lens, 0.1447))
    rates["mla_decode"] = 2 * 2048 * HEADS * (2 * LATENT + ROPE) / seconds / 1e9
    return rates


def bench_candidates(candidates: dict[str, Kernels]) -> None:
    """Print every candidate's rates, and where the rule (kernels/README.md) did not take the fastest."""
    rates = {
        name: candidate_rates(which) for name, which in candidates.items() if name not in ("reference", "portable")
    }
    if not rates:
        return
    rule = list(rates)[-1]
    columns = list(rates[rule])
    sys.stdout.write("GFLOP/s in bfloat16, weights in cache, the rule takes " + rule + "\n")
    sys.stdout.write(f"{'candidate':<16}" + "".join(f"{column:>14}" for column in columns) + "\n")
    for name, row in rates.items():
        sys.stdout.write(f"{name:<16}" + "".join(f"{row[column]:>14.0f}" for column in columns) + "\n")
    for column in columns:
        best = max(rates, key=lambda name: rates[name][column])
        if rates[best][column] > 1.05 * rates[rule][column]:
            share = rates[rule][column] / rates[best][column]
            sys.stdout.write(f"{column}: {best} is the fastest, {rule} has {share:.0%} of its rate\n")
    sys.stdout.write("\n")


def bench_brief(table: Table) -> None:
    """What a call costs at one token, where the arithmetic is nothing."""
    x, weight = torch.randn(1, 1024), torch.ones(1024).bfloat16()
    table.row("rms_norm 1024", 1, best_s(lambda: kernels.rms_norm(x, weight, 1e-5)), x.nbytes, 0)
    positions, inv_freq = torch.tensor([1234]), torch.rand(32)
    q = torch.randn(1, 16, 64)
    table.row("rope 16 x 64", 1, best_s(lambda: kernels.rope(q, positions, inv_freq)), q.nbytes, 0)
    small = kernels.pack_linear(torch.randn(1536, 1024).bfloat16())
    table.row(
        "linear 1536 x 1024, in cache", 1, best_s(lambda: kernels.linear(x, small)), small.nbytes, 2 * 1536 * 1024
    )


def fastest_s(call: Callable[[], Any]) -> float:
    """The better of one thread and all threads: on a busy machine PyTorch's threads get into each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = best_s(call)
    torch.set_num_threads(threads)
    return min(alone, best_s(call))


def read_rate() -> float:
    """Bytes a second of a plain sum over 400 MB."""
    values = torch.ones(100_000_000)
    return values.nbytes / fastest_s(values.sum)


def flop_rate(dtype: torch.dtype) -> float:
    """FLOP a second of PyTorch's product of 1024-square matrices."""
    a = torch.randn(1024, 1024).to(dtype)
    return 2 * 1024**3 / fastest_s(lambda: a @ a)


def main() -> None:
    """Prints the table."""
    torch.manual_seed(0)
    read, gemm = read_rate(), flop_rate(torch.float32)
    sys.stdout.write(
        f"{torch.get_num_threads()} threads, {kernels.describe()['expert_mlp']}; read {read / 1e9:.1f} GB/s, "
        f"PyTorch GEMM: float32 {gemm / 1e9:.0f} GFLOP/s, bfloat16 {flop_rate(torch.bfloat16) / 1e9:.0f} GFLOP/s\n"
    )
    table = Table(read, gemm)
    candidates = kernels.implementations()
    chosen = list(candidates.values())[-1]
    bench_candidates(candidates)
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        bench_experts(table, f"expert_mlp 7168 x 2048 {short}", chosen, dtype, (1, 2, 4, 8, 12, 32, 64))
    bench_experts(table, "the same, aten int4pack bfloat16", portable, torch.bfloat16, (1, 8, 64))
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        bench_linear(table, f"linear 7168 x 7168 {short}", chosen, dtype, (1, 8, 32, 512))
    bench_linear(table, "the same, PyTorch bfloat16", portable, torch.bfloat16, (1, 8))
    bench_onednn(table, (1, 8, 32, 512))
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        bench_decode(table, f"mla_decode 64 heads, 2048 context {short}", chosen, dtype, 1, 2048)
        bench_decode(table, f"mla_decode 64 heads, 2048 context {short}", chosen, dtype, 8, 2048)
    bench_brief(table)
