"""Networks that corrupt, cut or swallow frames: no wrong sum, and a clean repeat."""

import time

import pytest
import torch

from services.attention.experts.metrics import REPEATED_CALLS
from tests.services.attention.experts.dispatching import assert_same, connected, dispatch
from tests.services.attention.experts.relay import Relay, flip_now_and_then
from tests.services.expert.serving import ServerThread, plain_sum, random_work
from tests.waiting import until

TCP = pytest.mark.parametrize("transport", ["tcp", "sealed"])


def repeats(reason):
    return REPEATED_CALLS.labels(reason)._value.get()


@pytest.mark.parametrize("transport", ["sealed"])
@pytest.mark.slow
async def test_corrupted_sealed_frames_are_repeated_over_new_connections(stack, model, transport):
    servers = [stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True)) for _ in range(2)]
    for seed, server in enumerate(servers):
        stack.enter_context(Relay(server, flip_now_and_then(seed, every=12)))
    async with connected(model, [[server.address for server in servers]], transport) as experts:
        before = repeats("lost")
        for step in range(60):
            work = random_work(model, 1 + step % 7, seed=step % 7)
            total = await dispatch(experts, work, step)
            assert_same(total, plain_sum(model, 2, work))
        assert repeats("lost") > before
        assert {replica.carrier for calls in experts._shards for replica in calls.replicas} == {"sealed"}


@TCP
async def test_a_connection_that_is_half_open_costs_one_repeat(stack, model, transport):
    first, second = (stack.enter_context(ServerThread(model, "127.0.0.1:0", native=True)) for _ in range(2))
    relay = stack.enter_context(Relay(first))
    async with connected(model, [[first.address, second.address]], transport, repeat_s=0.5) as experts:
        work = random_work(model, 3)
        expected = await dispatch(experts, work)
        relay.hold()
        before = repeats("late")
        slowest_s = 0.0
        for step in range(20):
            started_s = time.monotonic()
            assert torch.equal(await dispatch(experts, work, step), expected)
            slowest_s = max(slowest_s, time.monotonic() - started_s)
        # The silent replica is a suspect after its first call, so the others go elsewhere.
        assert repeats("late") == before + 1
        assert 0.5 <= slowest_s < 5


@TCP
async def test_a_cut_connection_is_repeated_at_once(stack, model, transport):
    first, second = (stack.enter_context(ServerThread(model, "127.0.0.1:0")) for _ in range(2))
    relay = stack.enter_context(Relay(first))
    async with connected(model, [[first.address, second.address]], transport) as experts:
        work = random_work(model, 3)
        expected = await dispatch(experts, work)
        first.shard.hold()
        flying = [dispatch(experts, work, step) for step in range(4)]
        await until(first.shard.entered.is_set)
        relay.__exit__()
        started_s = time.monotonic()
        for result in flying:
            assert torch.equal(await result, expected)
        assert time.monotonic() - started_s < 5
        first.shard.release()
