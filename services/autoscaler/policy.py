"""How many replicas of each role there should be: a pure function of demand, what is there, limits and the clock."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Role = Literal["tokenizer", "vision", "prefill", "decode", "expert"]
ROLES: tuple[Role, ...] = get_args(Role)
ATTENTION: tuple[Role, ...] = ("prefill", "decode")

# A lower number has to fit with room to spare, or the next request would turn it back.
HEADROOM = 0.8
# Replicas beyond this share of used blocks begin to send generations back to wait.
BLOCK_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class RoleDemand:
    """What all gateways together say of one role.

    num_requests   open requests that need the role
    load           in the unit of its target: queued prompt tokens for prefill, requests for all others
    blocks_used    of latent KV, over all replicas, by running generations
    blocks_each    that one replica has; 0: not known, or none
    """

    num_requests: int = 0
    load: int = 0
    blocks_used: int = 0
    blocks_each: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """Whole replicas, and the load of one."""

    min: int
    max: int
    target: int


@dataclass(frozen=True, slots=True)
class Timing:
    """idle_s     without demand before zero
    down_s     that a lower number must have been enough
    startup_s  that a replica may take to become ready before its idleness counts
    """

    idle_s: float
    down_s: float
    startup_s: float


@dataclass(frozen=True, slots=True)
class Current:
    """The state of one role.

    replicas  whole replicas that are asked for
    ready     those of them that are ready
    parts     pods beyond the whole replicas: a part of a replica serves nothing
    """

    replicas: int = 0
    ready: int = 0
    parts: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the past of one role says about its future.

    busy_s    when it was last needed
    waking_s  since when none of its replicas is ready; None: some are, or there are none
    enough    (until when it binds, replicas that were enough): later ones are smaller
    """

    busy_s: float
    waking_s: float | None = None
    enough: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """Replicas by role, and what to hand to the next decision."""

    replicas: Mapping[Role, int]
    memory: Mapping[Role, Memory] = field(default_factory=dict)


def decide(
    demand: Mapping[Role, RoleDemand] | None,
    current: Mapping[Role, Current],
    limits: Mapping[Role, Limits],
    timing: Timing,
    now_s: float,
    memory: Mapping[Role, Memory],
) -> Decision:
    """The number of replicas that each role should have now.

    demand   None: not all gateways can be heard, so nothing gets smaller
    current  of the roles in `limits`; one that is not known yet is not decided on
    memory   of the decision before; empty at first, which counts as just having been busy

    Up at once, as far as the load asks; all roles of a request are needed from its arrival, so they wake together. Down
    when a lower number was enough for `down_s`, with headroom; to zero after `idle_s` without a request, not counting
    the time in which a first replica still starts. Running requests are load, so nothing they need is taken away.
    """
    replicas: dict[Role, int] = {}
    remembered: dict[Role, Memory] = {}
    for role in ROLES:
        if role not in limits or role not in current:
            continue
        heard = _demand_of(role, demand) if demand is not None else None
        before = memory.get(role) or Memory(now_s, enough=((now_s + timing.down_s, current[role].replicas),))
        wanted, remembered[role] = _decide_role(heard, current[role], limits[role], timing, now_s, before)
        if role == "expert" and any(replicas.get(attention) for attention in ATTENTION):
            # Attention is not ready without experts, and cannot drain without them.
            wanted = max(wanted, 1)
        replicas[role] = wanted
    return Decision(replicas, remembered)


def needed(demand: RoleDemand, target: float, block_share: float = BLOCK_SHARE) -> int:
    """Replicas for a load of `target` each; at least one if anybody needs the role."""
    by_load = math.ceil(demand.load / target)
    by_blocks = math.ceil(demand.blocks_used / (block_share * demand.blocks_each)) if demand.blocks_each else 0
    return max(by_load, by_blocks, 1 if demand.num_requests else 0)


def _demand_of(role: Role, demand: Mapping[Role, RoleDemand]) -> RoleDemand:
    """The demand of a role; gateways do not know experts, which attention needs."""
    if role != "expert":
        return demand.get(role, RoleDemand())
    load = sum(demand[attention].num_requests for attention in ATTENTION if attention in demand)
    return RoleDemand(num_requests=load, load=load)


def _decide_role(
    demand: RoleDemand | None, current: Current, limits: Limits, timing: Timing, now_s: float, before: Memory
) -> tuple[int, Memory]:
    waking_s = (
        (before.waking_s if before.waking_s is not None else now_s) if current.replicas > current.ready == 0 else None
    )
    starts = waking_s is not None and now_s - waking_s < timing.startup_s
    if demand is None:
        kept = max(limits.min, min(limits.max, current.replicas))
        enough = _remember(before.enough, now_s, now_s + timing.down_s, kept)
        return max(current.replicas, limits.min), Memory(now_s, waking_s, enough)
    busy_s = now_s if demand.num_requests or starts else before.busy_s
    roomy = needed(demand, HEADROOM * limits.target, HEADROOM * BLOCK_SHARE)
    enough = _remember(before.enough, now_s, now_s + timing.down_s, roomy)
    # Between what the load asks for and what was enough for a while, a number stays as it is.
    floor = needed(demand, limits.target)
    ceiling = max(floor, enough[0][1], 1 if now_s - busy_s < timing.idle_s else 0)
    wanted = max(floor, min(current.replicas, ceiling))
    return max(limits.min, min(limits.max, wanted)), Memory(busy_s, waking_s, enough)


def _remember(
    enough: tuple[tuple[float, int], ...], now_s: float, until_s: float, number: int
) -> tuple[tuple[float, int], ...]:
    """The numbers that bind now, the largest first, with a new one; those that it makes meaningless are left out."""
    return (*((until, known) for until, known in enough if until > now_s and known > number), (until_s, number))
