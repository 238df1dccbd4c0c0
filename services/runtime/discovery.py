"""The addresses of a role's replicas: fixed addresses, and DNS names with a record for each replica.

DNS only lists the replicas that exist. Callers ask each one whether it is ready and is the right one.
"""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncGenerator, Sequence

DNS = "dns:"
LOOK_UP_S = 5.0
JITTER = 0.25  # share of the time between two look-ups, so that processes do not ask at the same time

# The name has no records, so there are no replicas. Any other failure gives no information.
NOBODY = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

log = logging.getLogger(__name__)


def fixed_addresses(places: Sequence[str]) -> frozenset[str]:
    """Return the places that already are addresses."""
    return frozenset(place for place in places if not place.startswith(DNS))


async def poll_addresses(places: Sequence[str], every_s: float) -> AsyncGenerator[frozenset[str]]:
    """Yield the addresses of all places, looked up again after about every_s, endlessly; once if none is a name.

    places  addresses, and "dns:NAME:PORT". While a look-up fails, the previous addresses stay.
    """
    fixed = fixed_addresses(places)
    found: dict[str, frozenset[str]] = {place: frozenset() for place in places if place not in fixed}
    while True:
        for name in found:
            try:
                found[name] = await look_up(name)
            except (OSError, TimeoutError) as error:
                log.warning("%s cannot be looked up: %s", name, error or "no answer")
        yield fixed.union(*found.values())
        if not found:
            return
        await asyncio.sleep(every_s * random.uniform(1 - JITTER, 1 + JITTER))


async def look_up(name: str) -> frozenset[str]:
    """Return the addresses of a "dns:NAME:PORT", none if the name has no records. Raises OSError if DNS fails."""
    host, _, port = name.removeprefix(DNS).rpartition(":")
    try:
        async with asyncio.timeout(LOOK_UP_S):
            records = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in NOBODY:
            return frozenset()
        raise
    hosts = {str(address[0]) for *_, address in records}
    return frozenset(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
