"""Many more requests at once than can begin: each is served in time, or refused at once and served when it comes back.

    python -m tests.bench.abuse.admission [NUMBER]

The requests go to Nano as `moonshard up` serves it. Clients that are refused come back after the `Retry-After`.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np

from gateway.settings import GatewaySettings
from tests.bench.served import ErrorLines, served_nano
from tests.bench.table import print_table

NUM_REQUESTS = 700
NUM_TOKENS = 24
PROMPT = "Count the red circles and the blue squares in this row, one after the other. " * 12
BEGIN_S = float(GatewaySettings.model_fields["begin_s"].default)


@dataclass
class Client:
    """What became of one request. Times in seconds."""

    refused_after_s: list[float] = field(default_factory=list)
    again_s: list[float] = field(default_factory=list)
    first_token_s: float | None = None  # since the attempt that was served
    served_s: float | None = None  # since the first attempt
    failure: str = ""


async def ask(http: httpx.AsyncClient, number: int, client: Client) -> None:
    """Ask until it is served, and come back when the server says so."""
    body = {
        "model": "kimi-k2.6",
        "prompt": f"{number} {PROMPT}",
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    began_s = time.monotonic()
    while True:
        asked_s = time.monotonic()
        try:
            async with http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code == 200:
                    async for line in response.aiter_lines():
                        if client.first_token_s is None and '"text"' in line:
                            client.first_token_s = time.monotonic() - asked_s
                    client.served_s = time.monotonic() - began_s
                    return
                await response.aread()
        except httpx.HTTPError as error:
            client.failure = f"{type(error).__name__} {error}"
            return
        again = response.headers.get("retry-after")
        if response.status_code not in (429, 503) or again is None:
            client.failure = f"{response.status_code} {response.text[:200]}"
            return
        client.refused_after_s.append(time.monotonic() - asked_s)
        client.again_s.append(float(again))
        await asyncio.sleep(float(again))


async def run(url: str, number: int) -> list[Client]:
    limits = httpx.Limits(max_connections=None)
    clients = [Client() for _ in range(number)]
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as http:
        await ask(http, -1, Client())
        await asyncio.gather(*(ask(http, index, client) for index, client in enumerate(clients)))
    return clients


def spread(values: Sequence[float]) -> str:
    """Median, 99th percentile and maximum."""
    return " / ".join(f"{value:.1f}" for value in (*np.percentile(values, (50, 99)), max(values))) if values else ""


def row(name: str, clients: Sequence[Client]) -> dict[str, object]:
    return {
        "clients": name,
        "number": len(clients),
        "refused after s (median / p99 / max)": spread([one for client in clients for one in client.refused_after_s]),
        "Retry-After s": spread([client.again_s[0] for client in clients if client.again_s]),
        "first token s": spread([client.first_token_s for client in clients if client.first_token_s is not None]),
        "over the limit": sum((client.first_token_s or 0) > BEGIN_S for client in clients),
        "all s": spread([client.served_s for client in clients if client.served_s is not None]),
    }


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_REQUESTS
    with served_nano() as cluster:
        errors = ErrorLines(cluster)
        clients = asyncio.run(run(cluster.url, number))
        errors.read()
    served = [client for client in clients if client.served_s is not None]
    by_refusals = {refusals: [one for one in served if len(one.again_s) == refusals] for refusals in range(50)}
    names = {0: "served at once", 1: "served when they came back"}
    rows = [row(names.get(count, f"refused {count} times"), some) for count, some in by_refusals.items() if some]
    failed = [client.failure for client in clients if client.failure]
    print_table(f"{number} requests at once, {BEGIN_S:g} s to begin", [*rows, row("all", clients)])
    print_table("Failures", [{"failed": len(failed), "ERROR lines": len(errors.found)}])
    print("\n".join(["", *failed[:10], *errors.found[:10]]))


if __name__ == "__main__":
    main()
