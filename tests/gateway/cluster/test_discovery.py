"""Replicas that DNS lists: they come, they drain, they go, and a stream that still runs there ends well."""

import asyncio
import contextlib

import pytest

from services.runtime import discovery
from services.runtime.server import start_server
from tests.gateway.streams import stream_chat
from tests.waiting import until


@pytest.fixture
def records(monkeypatch):
    """The addresses that DNS lists by role, changed by the test."""
    listed: dict[str, set[str]] = {}

    async def look_up(name):
        return frozenset(listed.get(name, ()))

    monkeypatch.setattr(discovery, "look_up", look_up)
    return listed


@pytest.fixture
async def start(records, start_site):
    """A site whose decode replicas are found behind a name."""

    async def start(**settings):
        return await start_site(prefills=0, decodes=2, decode_places=("dns:decode:1",), discover_s=0.02, **settings)

    return start


def addresses(site) -> set[str]:
    return {replica.address for replica in site.gateway.cluster.decodes.replicas}


async def test_replicas_come_and_go(records, start):
    site = await start()
    first, second = site.decodes
    assert (await site.chat()).status_code == 503
    records["dns:decode:1"] = {first.address}
    await site.sees("decode", 1)
    assert (await site.chat()).status_code == 200
    records["dns:decode:1"] = {second.address}
    await site.sees("decode", 2)
    await first.stop()
    await until(lambda: addresses(site) == {second.address})
    assert (await site.chat()).status_code == 200
    assert len(second.decodes) == 1


@pytest.mark.slow
async def test_a_stream_on_a_replica_that_is_gone_from_dns_ends_well(records, start):
    site = await start()
    first, second = site.decodes
    records["dns:decode:1"] = {first.address}
    await site.sees("decode", 1)
    first.token_s = 0.05
    asked = asyncio.create_task(stream_chat(site.http))
    await until(lambda: first.num_sent)
    records["dns:decode:1"] = {second.address}
    await site.sees("decode", 2)
    # It says that it drains, and is dropped while the stream goes on.
    pool = site.gateway.cluster.decodes
    pool.lose(next(replica for replica in pool.replicas if replica.address == first.address))
    assert addresses(site) == {second.address}
    assert (await asked).finish == {0: "stop"}
    assert not second.decodes


async def test_further_shards_behind_the_name_are_not_asked(records, start):
    site = await start()
    async with contextlib.AsyncExitStack() as stack:
        further, address = await start_server(lambda server: None)
        stack.push_async_callback(further.stop, None)
        records["dns:decode:1"] = {address, site.decodes[0].address}
        await site.sees("decode", 1)
        await until(lambda: len(addresses(site)) == 2)
        assert {(await site.chat()).status_code for _ in range(3)} == {200}
        assert [replica.address for replica in site.gateway.cluster.decodes.serving] == [site.decodes[0].address]
