"""Steps of the 1.3-billion-parameter benchmark checkpoint in one process, without a gateway.

    python -m tests.bench.cpu_kernels.steps [--model FOLDER] [--threads 2] [--long 8192]

Decode: layer by layer against one native call, in turns. Prefill: every chunk projects its whole context against keys
and values that are kept. Medians and ranges.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kernels import decode_step, describe
from services.attention.experts.experts import LocalExperts
from services.attention.layers.batch import Row, make_batch
from services.attention.layers.expanded import ExpandedPrompts
from services.attention.layers.formulas import embed, forward_layers, routing
from services.attention.layers.weights import load_ends, load_layers
from services.local.random_checkpoint.write import write_random_checkpoint
from services.model.checkpoint import Checkpoint
from services.model.expert_shard import load_expert_shard
from tests.bench.engines import prompt, spread
from tests.bench.table import print_table

BLOCK_TOKENS = 64
CHUNK_TOKENS = 512
CONTEXT_TOKENS = 32
STREAMS = (1, 8, 32)
STEPS = 30
LATENT_EPS = 1e-6


class Model:
    """The whole model in this process, in bfloat16."""

    def __init__(self, folder: Path, num_tokens: int) -> None:
        checkpoint = Checkpoint(folder)
        self.config = checkpoint.config.text
        self.ends = load_ends(checkpoint)
        self.layers = load_layers(checkpoint, range(self.config.num_hidden_layers))
        self.shard = load_expert_shard(checkpoint, range(self.config.n_routed_experts))
        shape = -(-num_tokens // BLOCK_TOKENS), len(self.layers), BLOCK_TOKENS, self.config.latent_dim
        self.cache = torch.zeros(shape, dtype=torch.bfloat16)
        norms = {"eps": self.config.rms_norm_eps, "latent_eps": LATENT_EPS}
        self.step = decode_step(self.layers, self.shard, self.cache, routing(self.config), **norms)

    def forward(self, rows: Sequence[Row], expanded: ExpandedPrompts | None = None) -> Tensor:
        """One step, layer by layer."""
        batch = make_batch(rows, BLOCK_TOKENS)
        kept = () if expanded is None else expanded.begin(batch.segments)
        hidden = embed(batch.token_ids, self.ends, torch.bfloat16)
        where = self.layers, self.cache, self.config, LocalExperts(self.shard)
        how = {"step": 0, "micro_batch": 0, "latent_norm_eps": LATENT_EPS}
        return asyncio.run(forward_layers(hidden, batch, *where, **how, expanded=kept))

    def forward_in_one_call(self, rows: Sequence[Row]) -> Tensor:
        assert self.step is not None, f"no such call with {describe()['linear']}"
        batch = make_batch(rows, BLOCK_TOKENS)
        hidden = embed(batch.token_ids, self.ends, torch.bfloat16)
        return self.step(hidden, batch.slots, batch.positions, batch.block_tables, batch.context_lens)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_decode(model: Model, streams: int) -> dict[str, object]:
    rows = [Row([7 + i], CONTEXT_TOKENS, [i], 1, True) for i in range(streams)]
    forms = {"layer by layer": model.forward, "one call": model.forward_in_one_call}
    assert torch.equal(model.forward(rows), model.forward_in_one_call(rows))
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(STEPS):
        for name, form in forms.items():
            seconds[name].append(timed(lambda form=form: form(rows)))  # type: ignore[misc]
    return {"decode": f"x{streams}", **{f"{name}, ms": spread([s * 1e3 for s in of]) for name, of in seconds.items()}}


def measure_prefill(model: Model, num_tokens: int, repeats: int) -> dict[str, object]:
    tokens, blocks = prompt(num_tokens, 1), list(range(-(-num_tokens // BLOCK_TOKENS)))
    widths = [model.config.expanded_dim] * len(model.layers)

    def run(expanded: ExpandedPrompts | None) -> None:
        for start in range(0, num_tokens, CHUNK_TOKENS):
            row = Row(tokens[start : start + CHUNK_TOKENS], start, blocks, 0, False, 1, num_tokens)
            model.forward([row], expanded)

    rates: dict[str, list[float]] = {"projected again, tok/s": [], "kept, tok/s": []}
    for _ in range(repeats):
        for name, of in rates.items():
            kept = ExpandedPrompts(widths, torch.bfloat16, 1 << 40) if name.startswith("kept") else None
            of.append(num_tokens / timed(lambda kept=kept: run(kept)))  # type: ignore[misc]
    return {"prefill": num_tokens, **{name: spread(of) for name, of in rates.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps of the benchmark checkpoint in one process.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--long", type=int, default=8192)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = chosen.model or Path(folder) / "bench-1b"
        if not path.exists():
            write_random_checkpoint(path, dims="bench-1b", seed=1)
        model = Model(path, max(chosen.long, 64 * BLOCK_TOKENS))
        print_table("Decode steps", [measure_decode(model, streams) for streams in STREAMS])
        print_table("Prefill", [measure_prefill(model, 512, 5), measure_prefill(model, chosen.long, 1)])


if __name__ == "__main__":
    main()
