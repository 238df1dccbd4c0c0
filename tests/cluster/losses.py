"""Streams through the gateway while processes are killed: every client gets the same answer as without the loss."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import cycle
from typing import Any

import httpx

from tests.cluster.harness import Cluster
from tests.cluster.test_faults import body, stream

TIMEOUT_S = 240.0
BETWEEN_KILLS_S = 0.5

# Two of each, in bfloat16: a stream goes on with the same tokens only if the bits of its latent KV are the same.
BF16_TWICE: dict[str, Any] = {
    "experts": 1,
    "expert_replicas": 2,
    "prefills": 2,
    "decodes": 2,
    "tokenizers": 2,
    "settings": {"attention": {"DTYPE": "bfloat16"}},
}


async def answers(
    cluster: Cluster, numbers: Sequence[int], *, num_tokens: int, num_at_once: int, victims: Sequence[str] = ()
) -> list[Any]:
    """Return the streamed answers to questions by their numbers, even ones greedy and odd ones seeded."""

    async def ask(client: httpx.AsyncClient, number: int) -> Any:
        return await stream(client, number, request=question(number, num_tokens))

    return await ask_all(cluster, numbers, ask, num_at_once, victims)


def question(number: int, num_tokens: int) -> dict[str, Any]:
    """Return the request of a number: even ones greedy, odd ones seeded."""
    return {**body(number % 16, max_tokens=num_tokens), "temperature": float(number % 2), "seed": number}


async def ask_all(
    cluster: Cluster,
    numbers: Sequence[int],
    ask: Callable[[httpx.AsyncClient, int], Awaitable[Any]],
    num_at_once: int,
    victims: Sequence[str],
) -> list[Any]:
    """Return what `ask` gives for each number, in their order.

    victims  killed one after another, each when the previous one serves again, until the last answer is complete
    """
    left = iter(numbers)
    found: dict[int, Any] = {}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=TIMEOUT_S, limits=limits) as client:

        async def ask_in_turn() -> None:
            for number in left:
                found[number] = await ask(client, number)

        killing = asyncio.create_task(kill_in_turn(cluster, victims))
        try:
            await asyncio.gather(*(ask_in_turn() for _ in range(num_at_once)))
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
    await asyncio.to_thread(cluster.wait_ready)
    return [found[number] for number in numbers]


async def kill_in_turn(cluster: Cluster, victims: Sequence[str]) -> None:
    """Kill processes for ever, each when the previous one serves again."""
    for victim in cycle(victims):
        await asyncio.sleep(BETWEEN_KILLS_S)
        await asyncio.to_thread(cluster.kill, victim)
        await asyncio.to_thread(cluster.wait_ready, victim)
