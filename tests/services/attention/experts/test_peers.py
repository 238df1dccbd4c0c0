"""Who is connected to, and who is refused."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.attention.experts.experts import parse_experts
from services.runtime.errors import CheckpointError, ExpertsUnavailable
from tests.services.attention.experts.dispatching import TRANSPORTS, assert_same, dispatch, opened
from tests.services.expert.serving import ServerThread, plain_sum, random_work, short_folder


@pytest.mark.parametrize(
    "transport, shard, num_shards, digest, complaint",
    [
        pytest.param("grpc", 1, 2, None, "expected shard 0 of 2, found 1 of 2", id="another-shard"),
        pytest.param("grpc", 0, 3, None, "expected shard 0 of 2, found 0 of 3", id="another-number-of-shards"),
        pytest.param("grpc", 0, 2, b"\1" * 32, "found 0101010101010101", id="another-checkpoint"),
        pytest.param("unix", 0, 2, b"\1" * 32, "found 0101010101010101", id="another-checkpoint-unix"),
    ],
)
async def test_a_wrong_peer_is_refused(stack, model, transport, shard, num_shards, digest, complaint):
    folder = short_folder(stack)
    wrong = stack.enter_context(ServerThread(model, f"unix:{folder}/0", shard, num_shards, digest=digest))
    right = stack.enter_context(ServerThread(model, f"unix:{folder}/1", 1, 2))
    with pytest.raises(CheckpointError, match=complaint):
        async with opened(model, [[wrong.address], [right.address]], transport):
            pass


async def test_unix_transport_needs_a_unix_socket(stack, model):
    server = stack.enter_context(ServerThread(model, "127.0.0.1:0"))
    with pytest.raises(CheckpointError, match="offers no raw Unix socket"):
        async with opened(model, [[server.address]], "unix"):
            pass


async def test_opening_waits_for_every_shard_and_then_says_who_is_missing(stack, model):
    folder = short_folder(stack)
    there = stack.enter_context(ServerThread(model, f"unix:{folder}/0", 0, 2))
    with pytest.raises(ExpertsUnavailable, match=rf"1 of 2 expert shards are missing: unix:{folder}/1"):
        async with opened(model, [[there.address], [f"unix:{folder}/1"]], "grpc", open_s=0.5):
            pass


@TRANSPORTS
@pytest.mark.slow
async def test_opening_finds_a_shard_that_comes_later(stack, model, transport):
    folder = short_folder(stack)
    async with AsyncExitStack() as connection:
        opening = asyncio.ensure_future(
            connection.enter_async_context(opened(model, [[f"unix:{folder}/0"]], transport))
        )
        await asyncio.sleep(0.3)
        assert not opening.done()
        stack.enter_context(ServerThread(model, f"unix:{folder}/0"))
        experts = await opening
        work = random_work(model, 1)
        assert_same(await dispatch(experts, work), plain_sum(model, 2, work))


@pytest.mark.parametrize(
    "text, shards",
    [
        pytest.param("", [], id="none"),
        pytest.param("unix:/a", [["unix:/a"]], id="one"),
        pytest.param("a:1|b:1, c:1", [["a:1", "b:1"], ["c:1"]], id="replicas"),
    ],
)
def test_addresses(text, shards):
    assert parse_experts(text) == shards


@pytest.mark.parametrize("text", ["a:1,", "a:1||b:2", "|"])
def test_empty_addresses_are_a_mistake(text):
    with pytest.raises(ValueError, match="empty address"):
        parse_experts(text)
