"""A cluster in a few lines: replicas take their time to start, and a trace of requests comes and goes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.autoscaler.policy import Current, Decision, Limits, Role, RoleDemand, Timing, decide

LIMITS: Mapping[Role, Limits] = {
    "vision": Limits(0, 2, 4),
    "prefill": Limits(0, 4, 1000),
    "decode": Limits(0, 4, 10),
    "expert": Limits(0, 2, 40),
}
TIMING = Timing(idle_s=60, down_s=30, startup_s=600)
Demand = Mapping[Role, RoleDemand]


def chat(num_requests: int, queued_tokens: int = 0, num_images: int = 0) -> Demand:
    """The demand of so many open chats, some of them with prompts that are not computed."""
    return {
        "vision": RoleDemand(num_images, num_images),
        "prefill": RoleDemand(min(num_requests, math.ceil(queued_tokens / 100)), queued_tokens),
        "decode": RoleDemand(num_requests, num_requests),
    }


@dataclass(frozen=True)
class Moment:
    """What was so when a decision was made, and the decision."""

    at_s: float
    demand: Demand | None
    current: Mapping[Role, Current]
    decision: Decision


def run(
    trace: Callable[[float], Demand | None],
    until_s: float,
    *,
    every_s: float = 2.0,
    starts_s: float = 20.0,
    limits: Mapping[Role, Limits] = LIMITS,
    timing: Timing = TIMING,
) -> list[Moment]:
    """Every decision over a trace, from a cluster at its minimum on."""
    since: dict[Role, list[float]] = {role: [-1e9] * of.min for role, of in limits.items()}
    memory: Mapping[Role, object] = {}
    moments = []
    for step in range(int(until_s / every_s)):
        now_s = step * every_s
        current = {
            role: Current(len(starts), sum(now_s - start >= starts_s for start in starts))
            for role, starts in since.items()
        }
        demand = trace(now_s)
        decision = decide(demand, current, limits, timing, now_s, memory)
        memory = decision.memory
        moments.append(Moment(now_s, demand, current, decision))
        for role, number in decision.replicas.items():
            since[role] = [*since[role], *[now_s] * number][:number]
    return moments


def numbers(moments: Sequence[Moment], role: Role) -> list[int]:
    """Each number of replicas once, in the order in which they were decided on."""
    found: list[int] = []
    for moment in moments:
        if not found or found[-1] != moment.decision.replicas[role]:
            found.append(moment.decision.replicas[role])
    return found
