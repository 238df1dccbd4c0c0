"""Dispatch over real streams: the sum is the plain sum, whatever carries it and however many shards it comes from."""

import asyncio
import time

import pytest
import torch

from services.attention.experts.experts import LocalExperts
from services.attention.experts.metrics import DROPPED_ANSWERS
from services.checkpoint.placement import expert_placement
from services.model.checkpoint import Checkpoint
from services.model.expert_shard import load_expert_shard
from services.runtime.errors import ExpertsUnavailable, WireError
from tests.services.attention.experts.dispatching import (
    TRANSPORTS,
    addresses,
    assert_same,
    connected,
    dispatch,
    serve,
    waiting,
)
from tests.services.expert.serving import ServerThread, plain_sum, random_work
from tests.waiting import until

LAYER = 2


@TRANSPORTS
@pytest.mark.parametrize("num_shards", [1, 2, 3])
async def test_the_sum_is_the_plain_sum(stack, model, transport, num_shards):
    servers = serve(stack, model, num_shards)
    async with connected(model, addresses(servers), transport) as experts:
        for num_tokens in (1, 0, 2, 7, 130, 700):
            work = random_work(model, num_tokens, seed=num_tokens)
            assert_same(await dispatch(experts, work), plain_sum(model, LAYER, work))


@TRANSPORTS
async def test_a_shard_without_a_token_is_not_asked(stack, model, transport):
    servers = serve(stack, model, 3)
    async with connected(model, addresses(servers), transport) as experts:
        placed = expert_placement(16, 3)
        for shard, expert_ids in enumerate(placed):
            work = random_work(model, 5, experts=expert_ids)
            assert_same(await dispatch(experts, work), plain_sum(model, LAYER, work))
            assert [of_shard[0].shard.num_calls for of_shard in servers] == [1] * (shard + 1) + [0] * (2 - shard)


@TRANSPORTS
async def test_only_the_tokens_of_a_shard_travel_to_it(stack, model, transport):
    servers = serve(stack, model, 2)
    async with connected(model, addresses(servers), transport) as experts:
        first, second = expert_placement(16, 2)
        mine, others = random_work(model, 3, experts=first), random_work(model, 4, experts=second, seed=1)
        work = type(mine)(*(torch.cat(pair)[[0, 3, 4, 1, 5, 6, 2]] for pair in zip(mine, others, strict=True)))
        assert_same(await dispatch(experts, work), plain_sum(model, LAYER, work))
        top_k = work.topk_ids.shape[1]
        assert [of_shard[0].shard.token_counts.sum() for of_shard in servers] == [3 * top_k, 4 * top_k]


@TRANSPORTS
async def test_results_repeat_bit_by_bit(stack, model, transport):
    servers = serve(stack, model, 3, num_replicas=2)
    async with connected(model, addresses(servers), transport) as experts:
        work = random_work(model, 33)
        results = [await dispatch(experts, work, step) for step in range(6)]
        assert all(torch.equal(result, results[0]) for result in results)
        assert all(server.shard.num_calls == 3 for of_shard in servers for server in of_shard)


@TRANSPORTS
async def test_bf16_tokens_travel_as_they_are(stack, model, transport):
    servers = serve(stack, model, 2)
    async with connected(model, addresses(servers), transport) as experts:
        work = random_work(model, 9)
        work = work._replace(hidden=work.hidden.bfloat16())
        total = await dispatch(experts, work)
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, plain_sum(model, LAYER, work), rtol=1e-2, atol=1e-2)


@TRANSPORTS
async def test_many_micro_batches_in_flight_are_awaited_in_any_order(stack, model, transport):
    servers = serve(stack, model, 2, num_replicas=2)
    async with connected(model, addresses(servers), transport) as experts:
        works = [random_work(model, 1 + i % 5, seed=i) for i in range(24)]
        flying = [dispatch(experts, work, i, i % 3, 1 + i % 3) for i, work in enumerate(works)]
        for i in reversed(range(24)):
            assert_same(await flying[i], plain_sum(model, 1 + i % 3, works[i]))


@TRANSPORTS
@pytest.mark.slow
async def test_messages_larger_than_any_socket_buffer(stack, model, transport):
    servers = serve(stack, model, 1)
    async with connected(model, addresses(servers), transport) as experts:
        work = random_work(model, 20_000)
        flying = [dispatch(experts, work, step) for step in range(3)]
        results = [await result for result in flying]
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])
        rows = [0, 7, 19_999]
        part = type(work)(*(tensor[rows] for tensor in work))
        assert_same(results[0][rows], plain_sum(model, LAYER, part))


@TRANSPORTS
async def test_a_frame_is_sent_before_the_caller_gives_way(stack, model, transport):
    [[server]] = serve(stack, model, 1)
    async with connected(model, [[server.address]], transport) as experts:
        for step in range(3):
            server.shard.entered.clear()
            result = dispatch(experts, random_work(model, 1), step)
            # The shared expert would be computed here; this loop does nothing meanwhile.
            assert server.shard.entered.wait(60)
            await result


async def test_over_tcp(stack, model):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0"))
    async with connected(model, [[server.address]], "grpc") as experts:
        work = random_work(model, 3)
        assert_same(await dispatch(experts, work), plain_sum(model, LAYER, work))


async def test_local_experts_need_no_wire(model):
    experts = LocalExperts(load_expert_shard(Checkpoint(model), range(16)))
    await experts.open()
    for num_tokens in (0, 1, 6):
        work = random_work(model, num_tokens)
        assert_same(await dispatch(experts, work), plain_sum(model, LAYER, work))
    await experts.close()


@TRANSPORTS
async def test_calls_go_to_the_replica_with_fewer_of_them(stack, model, transport):
    [[held, free]] = serve(stack, model, 1, num_replicas=2)
    async with connected(model, [[held.address, free.address]], transport) as experts:
        held.shard.hold()
        flying = [dispatch(experts, random_work(model, 1, seed=i), i) for i in range(3)]
        for i in range(3, 9):
            result = dispatch(experts, random_work(model, 1, seed=i), i)
            flying.append(result)
            if free.shard.num_calls + held.shard.num_calls < i:
                await asyncio.sleep(0.05)
        held.shard.release()
        await asyncio.gather(*flying)
        assert free.shard.num_calls > held.shard.num_calls >= 1


@TRANSPORTS
async def test_a_late_answer_is_repeated_elsewhere_and_then_dropped(stack, model, transport):
    [replicas] = serve(stack, model, 1, num_replicas=2)
    async with connected(model, [[r.address for r in replicas]], transport, repeat_s=0.2) as experts:
        for replica in replicas:
            replica.shard.hold()
        before = DROPPED_ANSWERS._value.get()
        work = random_work(model, 3)
        result = asyncio.ensure_future(waiting(dispatch(experts, work)))
        await until(lambda: all(replica.shard.num_calls for replica in replicas))
        replicas[1].shard.release()
        assert_same(await result, plain_sum(model, LAYER, work))
        assert DROPPED_ANSWERS._value.get() == before
        replicas[0].shard.release()
        await until(lambda: DROPPED_ANSWERS._value.get() == before + 1)


@TRANSPORTS
@pytest.mark.slow
async def test_a_shard_that_does_not_answer_fails_its_callers_in_time(stack, model, transport):
    servers = serve(stack, model, 2)
    async with connected(model, addresses(servers), transport, deadline_s=3) as experts:
        servers[1][0].shard.hold()
        work = random_work(model, 4)
        started = time.monotonic()
        with pytest.raises(ExpertsUnavailable, match=r"expert shard 1 did not answer layer 2 .*is connected"):
            await dispatch(experts, work)
        assert 3 <= time.monotonic() - started < 20
        servers[1][0].shard.release()
        assert_same(await dispatch(experts, work, 1), plain_sum(model, LAYER, work))


@TRANSPORTS
async def test_a_caller_that_gives_up_leaves_nothing_behind(stack, model, transport):
    [[server]] = serve(stack, model, 1)
    async with connected(model, [[server.address]], transport) as experts:
        server.shard.hold()
        task = asyncio.ensure_future(waiting(dispatch(experts, random_work(model, 2))))
        await asyncio.sleep(0)  # now the task waits
        await until(lambda: server.shard.num_calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not any(len(calls) for calls in experts._shards))
        server.shard.release()
        work = random_work(model, 3)
        assert_same(await dispatch(experts, work, 1), plain_sum(model, LAYER, work))


@TRANSPORTS
async def test_a_refused_frame_is_a_wire_error_and_nothing_else_suffers(stack, model, transport):
    servers = serve(stack, model, 2)
    async with connected(model, addresses(servers), transport) as experts:
        good = random_work(model, 3)
        flying = dispatch(experts, good)
        with pytest.raises(WireError, match="layer 0 has no routed experts"):
            await dispatch(experts, good, 1, layer=0)
        with pytest.raises(WireError, match="3 numbers, expected hidden size 128"):
            await dispatch(experts, good._replace(hidden=torch.zeros(3, 3)), 1)
        assert_same(await flying, plain_sum(model, LAYER, good))
        assert_same(await dispatch(experts, good, 2), plain_sum(model, LAYER, good))


@TRANSPORTS
async def test_closing_fails_what_is_in_flight(stack, model, transport):
    [[server]] = serve(stack, model, 1)
    async with connected(model, [[server.address]], transport) as experts:
        server.shard.hold()
        result = dispatch(experts, random_work(model, 1))
        await experts.close()
        with pytest.raises(ExpertsUnavailable, match="shutting down"):
            await result
