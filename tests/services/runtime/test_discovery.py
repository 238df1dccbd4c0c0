"""Discovery of peers by address and by DNS, and the shard number of a pod."""

import asyncio
import socket
from contextlib import aclosing

import pytest
from pydantic import ValidationError

from services.runtime import discovery
from services.runtime.discovery import look_up, poll_addresses
from services.runtime.settings import check_place
from services.runtime.shards import ShardSettings


class Records:
    """A DNS whose answers a test sets: a name's addresses, or an error."""

    def __init__(self, monkeypatch) -> None:
        self.of: dict[str, frozenset[str] | Exception] = {}
        monkeypatch.setattr(discovery, "look_up", self._look_up)

    async def _look_up(self, name):
        if isinstance(found := self.of.get(name, frozenset()), Exception):
            raise found
        return found


async def test_a_real_name():
    found = await look_up("dns:localhost:7001")
    assert found & {"127.0.0.1:7001", "[::1]:7001"}
    assert all(address.endswith(":7001") for address in found)


async def test_a_name_without_records_is_nobody(monkeypatch):
    async def no_records(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", no_records)
    assert await look_up("dns:expert.default.svc:7001") == frozenset()


async def test_names_are_looked_up_again(monkeypatch):
    records = Records(monkeypatch)
    records.of["dns:a:1"] = frozenset({"10.0.0.1:1"})
    async with aclosing(poll_addresses(["unix:/x", "dns:a:1", "dns:b:2"], 0.01)) as polls:
        assert await anext(polls) == {"unix:/x", "10.0.0.1:1"}
        records.of |= {"dns:a:1": frozenset(), "dns:b:2": frozenset({"10.0.0.2:2", "10.0.0.3:2"})}
        assert await anext(polls) == {"unix:/x", "10.0.0.2:2", "10.0.0.3:2"}


@pytest.mark.parametrize(
    "error",
    [pytest.param(socket.gaierror(socket.EAI_AGAIN, "try again"), id="error"), pytest.param(TimeoutError(), id="late")],
)
async def test_while_dns_is_silent_the_last_answer_holds(monkeypatch, error):
    records = Records(monkeypatch)
    records.of["dns:a:1"] = frozenset({"10.0.0.1:1"})
    async with aclosing(poll_addresses(["dns:a:1"], 0.01)) as polls:
        await anext(polls)
        records.of["dns:a:1"] = error
        assert await anext(polls) == {"10.0.0.1:1"}


async def test_addresses_alone_are_told_once():
    assert [listed async for listed in poll_addresses(["unix:/x", "h:1"], 0.01)] == [{"unix:/x", "h:1"}]


@pytest.mark.parametrize("text", ["dns:a:1", "dns:m-expert.ns.svc.cluster.local:50051", "h:1", "unix:/x"])
def test_places(text):
    assert check_place(text) == text


@pytest.mark.parametrize("text", ["dns:a", "dns::1", "dns:a:x", "dns:a/b:1", "dns:a:70000", "dns:[::1]:1", "dns:", "x"])
def test_no_places(text):
    with pytest.raises(ValueError, match=r"is neither|is not dns:NAME:PORT"):
        check_place(text)


@pytest.mark.parametrize(
    "given, shard",
    [
        pytest.param({}, 0, id="nothing"),
        pytest.param({"num_shards": 3, "shard": 2}, 2, id="number"),
        pytest.param({"num_shards": 3, "ordinal": 0}, 0, id="first-pod"),
        pytest.param({"num_shards": 3, "ordinal": 7}, 1, id="third-replica"),
        pytest.param({"ordinal": 7}, 0, id="unsharded"),
    ],
)
def test_shard(given, shard):
    assert ShardSettings(listen="h:1", **given).shard == shard


@pytest.mark.parametrize(
    "given, complaint",
    [
        pytest.param({"num_shards": 2, "shard": 2}, "MOONSHARD_SHARD=2 is outside 0..1", id="outside"),
        pytest.param({"num_shards": 2, "shard": 1, "ordinal": 1}, "only one may be set", id="both"),
        pytest.param({"num_shards": 2, "ordinal": -1}, "greater than or equal to 0", id="negative"),
        pytest.param({"num_shards": 2, "ordinal": "expert-1"}, "valid integer", id="name-of-a-pod"),
        pytest.param({"num_shards": 2, "ordinal": ""}, "valid integer", id="empty"),
    ],
)
def test_bad_shard(given, complaint):
    with pytest.raises(ValidationError, match=complaint):
        ShardSettings(listen="h:1", **given)
