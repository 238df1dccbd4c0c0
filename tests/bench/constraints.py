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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from protos import attention_pb2 as pb
from services.attention.constraint.constraint import Constraint
from services.attention.constraint.recipes import Ask, make_recipe
from services.attention.constraint.requests import Constraints
from services.attention.constraint.workers import Rules
from services.attention.sampling.on_host import SamplingParams, sample
from services.checkpoint.vocabulary import TokenTable, load_tokens
from services.runtime.errors import MoonshardError
from tests.bench.table import print_table

# The released vocabulary, found as by the tests (tests/data/README.md).
BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kimi-k2-tokenizer"
VOCABULARY = Path(os.environ.get("MOONSHARD_RELEASED", BESIDE))
VOCAB_SIZE = 163_840
NUM_STEPS = 60
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "people": {
            "type": "array",
            "minItems": 2,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "number"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["title", "year", "people"],
    "additionalProperties": False,
}


async def begin(
    constraints: Constraints, wanted: pb.Constraint, token_ids: list[int], budget: int, tenant: str = ""
) -> Constraint:
    plan = await constraints.plan(wanted, tenant)
    return await constraints.start(plan, token_ids, 1, 1 + budget)


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


HOSTILE_PER_S = 12
NUM_CALLS = 15
NUM_TURNS = 7
ATTACK_S = 15.0
CALL_TOKENS = 60
PRIMES = [9973, 9967, 9949, 9941, 9931, 9929, 9923, 9907, 9901, 9887]


def hostile(number: int) -> pb.Constraint:
    """A tool that nobody sent before: impossible, very long, or minutes of work for the library."""
    nonce = {"description": f"{number}"}
    first, second = list(itertools.combinations(PRIMES, 2))[number % 45]
    branches: dict[str, object] = {"type": "string"}
    for _ in range(7):
        either = {"type": "object", "properties": {"a": branches, "b": branches}}
        branches = {"anyOf": [{"type": "array", "items": branches}, either]}
    kinds = [
        {"type": "object", "properties": {"child": {"$ref": "#"}}, "required": ["child"]},
        {"properties": {"a": {"type": "array", "minItems": 30_000}}, "required": ["a"]},
        {"properties": {"a": {"type": "string", "minLength": 100_000}}, "required": ["a"]},
        {"properties": {"a": {"type": "integer", "allOf": [{"multipleOf": first}, {"multipleOf": second}]}}},
        {"properties": {"a": branches}},
    ]
    parameters = json.dumps({**kinds[number % len(kinds)], **nonce})
    tool = pb.CallableTool(name="f", parameters_json=parameters)
    return pb.Constraint(tools=[tool], tool_use=pb.TOOL_USE_REQUIRED)


async def attack(constraints: Constraints, tenant: str, numbers: Iterator[int], verdicts: list[str]) -> None:
    """Sends hostile grammars evenly until it is cancelled, none of them twice."""

    async def one(number: int) -> None:
        try:
            await begin(constraints, hostile(number), [0], 100_000, tenant)
            verdicts.append("taken")
        except MoonshardError as error:
            verdicts.append(type(error).__name__)

    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(one(number))
            await asyncio.sleep(1 / HOSTILE_PER_S)


async def ordinary_calls(constraints: Constraints, rules: Rules, tenant: str, first: int) -> list[float]:
    """Seconds of each of some tool calls, one after the other, each with a schema of its own."""
    took = []
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 3
    for number in range(first, first + NUM_CALLS):
        started = time.perf_counter()
        tool = pb.CallableTool(name="f", parameters_json=json.dumps({**SCHEMA, "description": f"{tenant}{number}"}))
        wanted = pb.Constraint(tools=[tool], tool_use=pb.TOOL_USE_REQUIRED)
        token_ids = [0]
        constraint = await begin(constraints, wanted, token_ids, CALL_TOKENS, tenant)
        while len(token_ids) <= CALL_TOKENS:
            made = await rules.finish(rules.begin([constraint]))
            token = (await rules.sample(logits.clone(), [SamplingParams()], [len(token_ids)], [None], made))[0]
            token_ids.append(token.token_id)
            if token.token_id in constraints._markers.ends:
                break
        took.append(time.perf_counter() - started)
    return took


async def under_attack(
    constraints: Constraints, attacker: str, tenant: str, numbers: Iterator[int]
) -> dict[str, object]:
    """Measure calls alone and beside the attack by turns, and compare neighbours: the machine changes meanwhile."""
    rules = Rules()
    await ordinary_calls(constraints, rules, tenant, 0)
    rates: dict[bool, list[float]] = {False: [], True: []}
    largest = {False: 0.0, True: 0.0}
    verdicts: list[str] = []
    for turn in range(1, 2 * NUM_TURNS + 1):
        is_attacked = turn % 2 == 0
        attacking = asyncio.create_task(attack(constraints, attacker, numbers, verdicts)) if is_attacked else None
        await asyncio.sleep(2)
        took = await ordinary_calls(constraints, rules, tenant, NUM_CALLS * turn)
        if attacking:
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)
        rates[is_attacked].append(len(took) / sum(took))
        largest[is_attacked] = max(largest[is_attacked], *took)
    ratios = [attacked / alone for alone, attacked in zip(rates[False], rates[True], strict=True)]
    return {
        "tenants": "known" if tenant else "unknown",
        "calls/s alone": spread(rates[False]),
        f"beside {HOSTILE_PER_S} hostile/s": spread(rates[True]),
        "ratio": spread(ratios),
        "longest call ms": f"{largest[False] * 1e3:.0f}, {largest[True] * 1e3:.0f}",
        "verdicts": ", ".join(f"{name} {verdicts.count(name)}" for name in sorted(set(verdicts))),
    }


def spread(values: list[float]) -> str:
    return f"{np.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


async def cost_of_attack(constraints: Constraints, attacker: str, numbers: Iterator[int]) -> dict[str, object]:
    """Measure the computing that an attack alone takes, which does not depend on what else the machine does."""
    verdicts: list[str] = []
    attacking = asyncio.create_task(attack(constraints, attacker, numbers, verdicts))
    await asyncio.sleep(2)
    num_before, started_s, before = len(verdicts), time.monotonic(), computing_s()
    await asyncio.sleep(ATTACK_S)
    seconds = time.monotonic() - started_s
    here, children = (after - was for after, was in zip(computing_s(), before, strict=True))
    attacking.cancel()
    await asyncio.gather(attacking, return_exceptions=True)
    return {
        "tenant": attacker or "unknown",
        "verdicts a second": round((len(verdicts) - num_before) / seconds, 1),
        "cores of the engine's process": round(here / seconds, 3),
        "cores of compilers": round(children / seconds, 3),
        "verdicts": ", ".join(f"{name} {verdicts.count(name)}" for name in sorted(set(verdicts))),
    }


def computing_s() -> tuple[float, float]:
    """CPU seconds of this process, and of all that it started."""
    me = psutil.Process()
    own = me.cpu_times()
    others = [child.cpu_times() for child in me.children(recursive=True)]
    return own.user + own.system, sum(
        each.user + each.system + each.children_user + each.children_system for each in others
    )


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
