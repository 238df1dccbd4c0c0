"""Policies that choose the replica of the next call: functions from loads to one replica."""

import math
from collections.abc import Mapping, Sequence

import xxhash

from gateway.cluster.replica import Replica
from services.runtime.errors import Overloaded

RENDER_BOUND = 1.25


def choose_prefill(replicas: Sequence[Replica], cached_tokens: Mapping[str, int]) -> Replica:
    """Return the replica that will be done first: fewest queued tokens, less cached tokens of this prompt.

    cached_tokens  address -> leading tokens of this prompt that went through that replica
    """
    return min(replicas, key=lambda replica: replica.queued_tokens - cached_tokens.get(replica.address, 0))


def choose_decode(replicas: Sequence[Replica]) -> Replica:
    """Return the replica with most free blocks among those whose queue has room; Overloaded if no queue has."""
    roomy = [replica for replica in replicas if not replica.is_full]
    if not roomy:
        raise Overloaded(f"the queues of all {len(replicas)} decode replicas are full", retry_after_s=1.0)
    return max(roomy, key=lambda replica: replica.free_blocks)


def choose_renderer(replicas: Sequence[Replica], key: bytes) -> Replica:
    """Return the replica that renders the conversations of this key, or the next in their order if it is too busy.

    Each key has an order of all replicas (rendezvous hashing), so a replica that comes or goes moves only its share.
    Too busy means a quarter more open calls than the average: so no key can pile its work up on one replica.
    """
    bound = math.ceil(RENDER_BOUND * (1 + sum(replica.num_rendering for replica in replicas)) / len(replicas))
    ranked = sorted(replicas, key=lambda replica: xxhash.xxh3_64_intdigest(replica.address.encode() + key))
    return next(replica for replica in ranked if replica.num_rendering < bound)


class RoundRobin:
    """Chooses each replica in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, replicas: Sequence[Replica]) -> Replica:
        self._turn += 1
        return replicas[self._turn % len(replicas)]
