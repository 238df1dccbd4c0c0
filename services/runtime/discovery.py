"""Where the replicas of a role are: fixed addresses, and DNS names of which every record is a replica.

DNS only says who exists. Who is ready, and whether it is the right one, the processes say themselves.
"""

import asyncio
import logging
import random
import socket
from collections.abc import AsyncGenerator, Sequence

DNS = "dns:"
LOOK_UP_S = 5.0
JITTER = 0.25  # of the time between two look-ups, so that not all processes ask at once

# The name has no record (now): nobody is there. Every other failure says nothing about who is.
NOBODY = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

log = logging.getLogger(__name__)


def fixed_addresses(places: Sequence[str]) -> frozenset[str]:
    """Those of the places that are addresses already."""
    return frozenset(place for place in places if not place.startswith(DNS))


async def poll_addresses(places: Sequence[str], every_s: float) -> AsyncGenerator[frozenset[str]]:
    """The addresses of all places, looked up again after about every_s, for ever; once if no place is a name.

    places  addresses, and "dns:NAME:PORT". While a name cannot be looked up, what it meant before holds.
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
    """The addresses of a "dns:NAME:PORT", none if the name has no records. OSError if DNS does not say."""
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
