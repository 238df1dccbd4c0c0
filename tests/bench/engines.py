"""Whole engines on the 1.3-billion-parameter benchmark checkpoint: ours with local experts, our cluster, transformers.

    python -m tests.bench.engines [--model FOLDER] [--dtype bfloat16] [--engines local shared tcp/2+1 ...]

All compute the same function on the same random weights, in the same run, one after another. Ours is driven over gRPC,
as the gateway does it; transformers in this process. Every figure is the median of REPEATS, with the spread.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, DeepseekV3ForCausalLM

from protos import attention_pb2 as pb
from services.local.cluster import num_cores
from services.local.random_checkpoint.write import write_random_checkpoint
from services.local.threads import Threads
from services.local.topology import Topology
from tests.bench.table import print_table
from tests.cluster.client import TokenClient
from tests.cluster.harness import Cluster
from tests.reference.model import read_weights

REPEATS = 3
PROMPT_TOKENS = 512
CONTEXT_TOKENS = 32  # before decoding starts
DECODE_TOKENS = 48
STREAMS = (1, 8, 32)
VOCABULARY = 31_000


@dataclass(frozen=True)
class Figures:
    """Of one engine; times in seconds, rates in tokens per second."""

    engine: str
    ttft_s: Sequence[float]
    decode: dict[int, Sequence[float]]
    gaps_s: dict[int, Sequence[float]]
    ready_s: float
    memory: str

    def row(self) -> dict[str, str]:
        cells = {
            "engine": self.engine,
            f"prefill {PROMPT_TOKENS} tok/s": spread([PROMPT_TOKENS / s for s in self.ttft_s]),
        }
        cells["TTFT ms"] = spread([s * 1e3 for s in self.ttft_s])
        for streams in STREAMS:
            cells[f"decode x{streams} tok/s"] = spread(self.decode[streams])
        for streams in STREAMS:
            gaps = sorted(self.gaps_s[streams])
            cells[f"gap x{streams} p50/p99 ms"] = (
                f"{gaps[len(gaps) // 2] * 1e3:.1f} / {gaps[len(gaps) * 99 // 100] * 1e3:.1f}"
            )
        return cells | {"ready s": f"{self.ready_s:.1f}", "memory MiB": self.memory}


def spread(values: Sequence[float]) -> str:
    """Median, and the range where there is one."""
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def prompt(num_tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=num_tokens)


def measure_ours(name: str, topology: Topology, log_path: Path) -> Figures:
    """Starts a cluster without prefill replicas and drives its decode replica."""
    started = time.perf_counter()
    with Cluster(topology, log_path) as cluster:
        ready_s = time.perf_counter() - started
        ttft, decode, gaps = asyncio.run(_drive(cluster))
        memory = ", ".join(
            f"{n} {cluster.memory_bytes(n) >> 20}" for n in cluster.names if n.startswith(("dec", "exp"))
        )
    return Figures(name, ttft, decode, gaps, ready_s, memory)


async def _drive(cluster: Cluster) -> tuple[list[float], dict[int, list[float]], dict[int, list[float]]]:
    async with TokenClient(cluster) as client:

        async def stream(num_prompt: int, num_new: int, seed: int) -> list[float]:
            sampling = pb.Sampling(temperature=0.0, top_p=1.0, max_new_tokens=num_new)
            tokens = client.stream(prompt(num_prompt, seed), [], sampling)
            return [time.perf_counter() async for _ in tokens]

        await stream(PROMPT_TOKENS, 2, 999)
        ttft = []
        for repeat in range(REPEATS):
            started = time.perf_counter()
            ttft.append((await stream(PROMPT_TOKENS, 1, repeat))[0] - started)
        decode: dict[int, list[float]] = {n: [] for n in STREAMS}
        gaps: dict[int, list[float]] = {n: [] for n in STREAMS}
        for num_streams in STREAMS:
            for repeat in range(REPEATS):
                seeds = [10_000 + 1000 * num_streams + 100 * repeat + i for i in range(num_streams)]
                times = await asyncio.gather(*(stream(CONTEXT_TOKENS, DECODE_TOKENS, seed) for seed in seeds))
                # From the moment that every stream is decoding, to the moment that the first one ends.
                first, last = max(t[0] for t in times), min(t[-1] for t in times)
                decode[num_streams].append(sum(first < x <= last for t in times for x in t) / (last - first))
                gaps[num_streams] += [b - a for t in times for a, b in itertools.pairwise(t[1:])]
        return ttft, decode, gaps


def measure_transformers(model_path: Path, dtype: torch.dtype) -> Figures:
    """Hugging Face's own implementation, eager, with its KV cache; batches of equal lengths need no padding."""
    torch.set_num_threads(num_cores())
    started = time.perf_counter()
    model = transformers_text_model(model_path, dtype)
    ready_s = time.perf_counter() - started
    ttft, decode, gaps = [], {n: [] for n in STREAMS}, {n: [] for n in STREAMS}
    with torch.inference_mode():
        for repeat in range(REPEATS):
            started = time.perf_counter()
            model(input_ids=torch.tensor([prompt(PROMPT_TOKENS, repeat)]), logits_to_keep=1)
            ttft.append(time.perf_counter() - started)
        for num_streams in STREAMS:
            ids = torch.tensor([prompt(CONTEXT_TOKENS, 10_000 + i) for i in range(num_streams)])
            steps = list(_decode_steps(model, ids, DECODE_TOKENS // 3))
            decode[num_streams].append(num_streams * len(steps) / sum(steps))
            gaps[num_streams] += steps
    size = sum(p.numel() * p.element_size() for p in model.parameters()) >> 20
    return Figures(f"transformers, {str(dtype).removeprefix('torch.')}", ttft, decode, gaps, ready_s, f"weights {size}")


def _decode_steps(model: Any, ids: torch.Tensor, num_steps: int) -> Iterator[float]:
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    for _ in range(num_steps):
        started = time.perf_counter()
        ids = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
        yield time.perf_counter() - started


def transformers_text_model(folder: Path, dtype: torch.dtype) -> Any:
    """The checkpoint in transformers' text model, its INT4 experts dequantised."""
    config = AutoConfig.from_pretrained(folder).text_config
    config._attn_implementation = "eager"
    weights = read_weights(folder, dtype)
    for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([weights.pop(f"{prefix}.{e}.{name}_proj.weight") for e in range(config.n_routed_experts)])
            for name in ("gate", "up", "down")
        )
        weights[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        weights[f"{prefix}.down_proj"] = down
    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(config)
    model.load_state_dict(weights, strict=False, assign=True)
    # Buffers that are no part of the checkpoint were left on the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    engines = ["local", "shared", "tcp", "grpc", "transformers"]
    parser.add_argument(
        "--engines", nargs="+", default=engines, help="local, transformers, or TRANSPORT[/ATTENTION+EXPERT threads]"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        model = options.model or Path(folder) / "bench-1b"
        if not model.exists():
            write_random_checkpoint(model, dims="bench-1b")
        settings = {"attention": {"NUM_BLOCKS": "160", "STEP_TOKENS": "512"}}
        common: dict[str, Any] = {"prefills": 0, "dtype": options.dtype, "settings": settings}
        cores = num_cores()
        figures = [
            measure_ours(f"ours, local experts, {options.dtype}", local, Path(folder) / "local.log")
            for local in [Topology(model, experts=0, threads=Threads.same(cores), **common)]
            if "local" in options.engines
        ]
        for name in options.engines:
            transport, _, threads = name.partition("/")
            if transport in ("local", "transformers"):
                continue
            of_attention, of_experts = threads.split("+") if threads else (str(cores), str(cores))
            roles = {
                "attention": {**settings["attention"], "EXPERT_TRANSPORT": transport, "THREADS": of_attention},
                "expert": {"WIRE_PORT": "0", "THREADS": of_experts},
            }
            split = Topology(model, experts=2, threads=Threads.same(cores), **{**common, "settings": roles})
            label = f"ours, 2 expert shards, {transport}, threads {of_attention}+{of_experts}, {options.dtype}"
            figures.append(measure_ours(label, split, Path(folder) / f"{transport}.log"))
        if "transformers" in options.engines:
            figures += [measure_transformers(model, dtype) for dtype in (torch.float32, torch.bfloat16)]
    print_table("Engines on bench-1b", [f.row() for f in figures])


if __name__ == "__main__":
    main()
