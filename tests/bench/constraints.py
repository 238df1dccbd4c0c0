"""The cost of a constrained token with K2.6's vocabulary, and the cost of hostile grammars for all other requests.

Streams are driven as the engine does it: rules by its workers, then the sampler, row by row. Random logits with the
weight of a real distribution: a few thousand tokens are likely. xgrammar stands beside it if it is installed.

    python -m tests.bench.constraints [tokens | attack | hostile]
"""

import asyncio
import importlib.util
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from protos import attention_pb2 as pb
from services.attention.constraint.constraint import Constraint
from services.attention.constraint.recipes import Ask, make_recipe
from services.attention.constraint.requests import Constraints
from services.attention.constraint.workers import Rules
from services.attention.sampling.on_host import SamplingParams, sample
from services.checkpoint.vocabulary import TokenTable, load_tokens
from tests.bench.abuse.hostile_grammars import (
    HOSTILE_PER_S,
    SCHEMA,
    VOCAB_SIZE,
    begin,
    cost_of_attack,
    under_attack,
)
from tests.bench.table import print_table

# The released vocabulary, found as by the tests (tests/data/README.md).
BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kimi-k2-tokenizer"
VOCABULARY = Path(os.environ.get("MOONSHARD_RELEASED", BESIDE))
NUM_STEPS = 60


async def measure(constraints: Constraints, num_streams: int, budget: int) -> dict[str, object]:
    """Return wall-clock microseconds per token and stream: of the rules, and of the sampler with and without them."""
    wanted = pb.Constraint(json_schema=json.dumps(SCHEMA))
    rules, params = Rules(), SamplingParams()
    plain, ruled, made, engine = [], [], [], []
    lists: list[list[int]] = []
    following: list[Constraint] = []
    for _ in range(num_streams):
        lists.append([0])
        following.append(await begin(constraints, wanted, lists[-1], budget))
    generator = torch.Generator().manual_seed(1)
    for _ in range(NUM_STEPS):
        logits = torch.randn(num_streams, VOCAB_SIZE, generator=generator) * 3
        started = time.perf_counter()
        bounds = await rules.finish(rules.begin(following))
        made.append(time.perf_counter() - started)
        positions = [len(one) for one in lists]
        started, cpu = time.perf_counter(), time.thread_time()
        chosen = await rules.sample(logits, [params] * num_streams, positions, [None] * num_streams, bounds)
        engine.append(time.thread_time() - cpu)
        ruled.append(time.perf_counter() - started)
        started = time.perf_counter()
        sample(logits, [params] * num_streams, positions)
        plain.append(time.perf_counter() - started)
        for i, choice in enumerate(chosen):
            if choice.token_id >= VOCAB_SIZE - 256 or len(lists[i]) >= budget:
                lists[i] = [0]
                following[i] = await begin(constraints, wanted, lists[i], budget)
            else:
                lists[i].append(choice.token_id)
    return {
        "streams": num_streams,
        "budget": budget,
        "rule us (median)": micros(np.median(made), num_streams),
        "rule us (mean)": micros(np.mean(made), num_streams),
        "sampler us": micros(np.median(ruled), num_streams),
        "sampler us, free": micros(np.median(plain), num_streams),
        "of it CPU us on the engine's thread": micros(np.median(engine), num_streams),
    }


def micros(seconds: float, num_streams: int) -> int:
    return round(seconds / num_streams * 1e6)


def xgrammar_masks(table: TokenTable) -> dict[str, object]:
    """Measure xgrammar with the same schema, one stream: a mask and the consumption of a token."""
    import xgrammar  # noqa: PLC0415

    vocabulary = [*table.ordinary, *(f"<|special_{i}|>".encode() for i in range(VOCAB_SIZE - len(table.ordinary)))]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[table.special_ids["<|im_end|>"]])
    started = time.perf_counter()
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_json_schema(json.dumps(SCHEMA))
    compile_ms = (time.perf_counter() - started) * 1e3
    mask = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
    return {"compile ms": round(compile_ms), **walk(table, lambda: xgrammar.GrammarMatcher(compiled), mask)}


def walk(table, make, mask):
    random = np.random.default_rng(0)
    took = []
    matcher = make()
    while len(took) < 300:
        started = time.perf_counter()
        matcher.fill_next_token_bitmask(mask)
        took.append(time.perf_counter() - started)
        bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
        token_id = int(random.choice(np.flatnonzero(bits)))
        if token_id >= len(table.ordinary) or not matcher.accept_token(token_id):
            matcher = make()
    return {"mask us (median)": micros(np.median(took), 1), "mask us (mean)": micros(np.mean(took), 1)}


def llguidance_masks(constraints: Constraints) -> dict[str, object]:
    """Measure masks alone, one stream, over the same kind of walk."""
    grammars = constraints._grammars
    assert grammars is not None
    started = time.perf_counter()
    start = grammars.grammar(make_recipe(Ask("json", json.dumps({**SCHEMA, "title": "again"})))).start
    compile_ms = (time.perf_counter() - started) * 1e3
    random = np.random.default_rng(0)
    took = []
    matcher = start.copy()
    while len(took) < 300:
        begun = time.perf_counter()
        mask = matcher.mask()
        took.append(time.perf_counter() - begun)
        allowed = np.flatnonzero(mask)
        if len(allowed) == 0 or not matcher.consume(int(random.choice(allowed))):
            matcher = start.copy()
    return {
        "compile ms": round(compile_ms),
        "mask us (median)": micros(np.median(took), 1),
        "mask us (mean)": micros(np.mean(took), 1),
    }


async def run(parts: set[str]) -> None:
    table = load_tokens(VOCABULARY, VOCAB_SIZE)
    constraints = Constraints(table)
    if "tokens" in parts:
        rows = [await measure(constraints, streams, budget) for streams in (1, 32) for budget in (32_768, 60)]
        print_table("Constrained tokens at 163,840 ids, per token and stream", rows)
        masks = [{"library": "llguidance", **llguidance_masks(constraints)}]
        if importlib.util.find_spec("xgrammar"):
            masks.append({"library": "xgrammar", **xgrammar_masks(table)})
        print_table("Masks of one stream", masks)
    if "hostile" in parts or "attack" in parts:
        numbers = itertools.count()
        rows = [await cost_of_attack(constraints, attacker, numbers) for attacker in ("mallory", "")]
        print_table(f"What {HOSTILE_PER_S} hostile grammars a second cost", rows)
    if "hostile" in parts:
        rows = [
            await under_attack(constraints, "mallory", "alice", numbers),
            await under_attack(constraints, "", "", numbers),
        ]
        print_table("Tool calls of 60 tokens beside hostile grammars", rows)
    await constraints.close()


def main() -> None:
    torch.set_num_threads(1)
    asyncio.run(run(set(sys.argv[1:]) or {"tokens", "hostile"}))


if __name__ == "__main__":
    main()
