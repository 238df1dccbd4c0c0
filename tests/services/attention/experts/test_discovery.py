"""Expert replicas behind a DNS name: found, sorted by what they hold, refused, dropped."""

import time
from contextlib import asynccontextmanager

import pytest

from services.attention.experts.experts import DispatchLimits, RemoteExperts
from services.checkpoint.placement import expert_placement
from services.model.checkpoint import Checkpoint
from services.runtime import discovery
from services.runtime.errors import ExpertsUnavailable
from tests.services.attention.experts.dispatching import assert_same, dispatch
from tests.services.expert.serving import ServerThread, plain_sum, random_work
from tests.waiting import until

NAME = "dns:m-expert.ns.svc:50051"
NUM_SHARDS = 2


@pytest.fixture
def records(monkeypatch):
    """The addresses that DNS lists, changed by the test."""
    listed: set[str] = set()

    async def look_up(name):
        assert name == NAME
        return frozenset(listed)

    monkeypatch.setattr(discovery, "look_up", look_up)
    return listed


@asynccontextmanager
async def behind_the_name(model, **limits):
    experts = RemoteExperts(
        [[]] * NUM_SHARDS,
        expert_placement(16, NUM_SHARDS),
        checkpoint_digest=Checkpoint(model).digest(),
        epoch=time.time_ns(),
        limits=DispatchLimits(**{"open_s": 60, "deadline_s": 60, **limits}),
        name=NAME,
        discover_s=0.02,
    )
    try:
        await experts.open()
        yield experts
    finally:
        await experts.close()


def held(experts) -> list[set[str]]:
    """The addresses in use, by shard."""
    return [{replica.address for replica in of_shard} for of_shard in [calls.replicas for calls in experts._shards]]


async def test_replicas_come_and_go(stack, model, records):
    def start(shard):
        return stack.enter_context(ServerThread(model, "127.0.0.1:0", shard, NUM_SHARDS))

    first, second = start(0), start(1)
    records |= {second.address, first.address}
    work = random_work(model, 3)
    async with behind_the_name(model) as experts:
        assert held(experts) == [{first.address}, {second.address}]
        assert_same(await dispatch(experts, work), plain_sum(model, 2, work))
        replica = start(1)
        records.add(replica.address)
        await until(lambda: held(experts)[1] == {second.address, replica.address})
        second.stop()
        await until(lambda: [one.live for one in experts._shards[1].replicas] == [False, True])
        records.remove(second.address)
        await until(lambda: held(experts)[1] == {replica.address})
        assert_same(await dispatch(experts, work, step=1), plain_sum(model, 2, work))


async def test_a_connection_that_stands_does_not_mind_what_dns_forgets(stack, model, records):
    servers = [stack.enter_context(ServerThread(model, "127.0.0.1:0", shard, NUM_SHARDS)) for shard in range(2)]
    records |= {server.address for server in servers}
    async with behind_the_name(model) as experts:
        records.clear()
        work = random_work(model, 3)
        for step in range(20):
            assert_same(await dispatch(experts, work, step=step), plain_sum(model, 2, work))


async def test_who_does_not_fit_is_named_and_never_used(stack, model, records, caplog):
    right = [stack.enter_context(ServerThread(model, "127.0.0.1:0", shard, NUM_SHARDS)) for shard in range(2)]
    other_sharding = stack.enter_context(ServerThread(model, "127.0.0.1:0", 2, 3))
    other_weights = stack.enter_context(ServerThread(model, "127.0.0.1:0", 0, NUM_SHARDS, digest=b"\1" * 32))
    wrong = [other_sharding, other_weights]
    records |= {server.address for server in [*right, *wrong]}
    async with behind_the_name(model) as experts:
        await until(lambda: len([record for record in caplog.records if record.levelname == "ERROR"]) == 2)
        work = random_work(model, 5)
        assert_same(await dispatch(experts, work), plain_sum(model, 2, work))
        assert held(experts) == [{right[0].address}, {right[1].address}]
    assert not any(server.shard.num_calls for server in wrong)
    assert f"{other_sharding.address}: expected shard 1 of 2, found 2 of 3" in caplog.text


async def test_an_address_that_another_shard_has_got(stack, model, records):
    """A pod's address is given to another pod, while DNS lists it all the time."""
    first, second = (stack.enter_context(ServerThread(model, "127.0.0.1:0", shard, NUM_SHARDS)) for shard in range(2))
    spare = stack.enter_context(ServerThread(model, "127.0.0.1:0", 0, NUM_SHARDS))
    records |= {first.address, second.address, spare.address}
    async with behind_the_name(model) as experts:
        await until(lambda: held(experts)[0] == {first.address, spare.address})
        spare.__exit__()
        stack.enter_context(ServerThread(model, spare.address, 1, NUM_SHARDS))
        await until(lambda: held(experts) == [{first.address}, {second.address, spare.address}])


@pytest.mark.slow
async def test_a_shard_that_nobody_holds_is_reported(stack, model, records):
    there = stack.enter_context(ServerThread(model, "127.0.0.1:0", 0, NUM_SHARDS))
    wrong = stack.enter_context(ServerThread(model, "127.0.0.1:0", 0, NUM_SHARDS, digest=b"\1" * 32))
    records |= {there.address, wrong.address}
    with pytest.raises(ExpertsUnavailable, match=r"1 of 2 expert shards.*1 replicas that fit.*found 0101010101010101"):
        async with behind_the_name(model, open_s=1.0):
            pass
