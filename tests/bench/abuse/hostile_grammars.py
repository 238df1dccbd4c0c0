"""Hostile grammars beside ordinary tool calls: what they cost, and by how much they slow others down.

python -m tests.bench.constraints [attack | hostile]
"""

import asyncio
import itertools
import json
import time
from collections.abc import Iterator

import numpy as np
import psutil
import torch

from protos import attention_pb2 as pb
from services.attention.constraint.constraint import Constraint
from services.attention.constraint.requests import Constraints
from services.attention.constraint.workers import Rules
from services.attention.sampling.on_host import SamplingParams
from services.runtime.errors import MoonshardError

VOCAB_SIZE = 163_840
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
