"""Hand-offs that the store cannot hold: blocks go from replica to replica, or are computed again; never wrong ones."""

import asyncio
import random
import threading
import time

import pytest
from redis.asyncio import Redis

from services.attention.engine.generation import Phase
from services.attention.layers import offers
from services.attention.layers.cached_blocks import WINDOW
from services.runtime.errors import Unavailable
from services.runtime.redis_server import RedisServer


def prompt(num_tokens, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


async def go_on(rig, source, handed, num_tokens, num_more):
    """The tokens of the generation that was handed over, and how many prompt tokens were not computed again."""
    tokens = [*prompt(num_tokens), handed.first.choice.token_id]
    request = rig.submit(tokens, num_more, num_prompt=num_tokens, tail=handed, source=source)
    first = await request.next()
    return [handed.first.choice.token_id, first.choices[0].token_id, *await request.tokens()], first.num_cached


async def pair(start_rig, **settings):
    return await start_rig(role="prefill", **settings), await start_rig(**settings)


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 95, 96])
async def test_without_a_store_nothing_is_computed_twice(start_rig, reference, num_tokens):
    prefill, decode = await pair(start_rig, handoff_hold_s=60.0)
    handed = await prefill.submit(prompt(num_tokens), 10, hand_over=True).handed_over()
    assert handed.offer
    tokens, num_cached = await go_on(decode, prefill, handed, num_tokens, 10)
    assert (tokens, num_cached) == (reference.generate(prompt(num_tokens), 10), num_tokens)
    await prefill.idle(5.0)  # long before the hold ends: taking the blocks frees them


async def test_latents_in_fp8_pass_too(start_rig):
    prefill, decode = await pair(start_rig, kv_dtype="fp8")
    handed = await prefill.submit(prompt(70), 10, hand_over=True).handed_over()
    alone = await decode.submit(prompt(70, seed=0), 10).tokens()
    again = await start_rig(kv_dtype="fp8")
    assert await go_on(again, prefill, handed, 70, 10) == (alone, 70)


@pytest.fixture
async def small_store(tmp_path):
    """A store that a quarter of holds 25 of our blocks of 20 kB."""
    with RedisServer(tmp_path, max_bytes=25 * 4 * 20480) as server:
        yield server.url


async def num_stored(url):
    redis = Redis.from_url(url)
    try:
        return len([key async for key in redis.scan_iter(match="*kv/*")])
    finally:
        await redis.aclose()


async def test_the_store_gets_what_it_holds_and_the_rest_goes_directly(start_rig, reference, small_store):
    prefill, decode = await pair(start_rig, store=small_store)
    assert prefill.replica.room.num_blocks == 25
    handed = await prefill.submit(prompt(600), 6, hand_over=True).handed_over()
    assert handed.offer and len(handed.block_names) == 37
    assert await num_stored(small_store) == 25
    tokens, num_cached = await go_on(decode, prefill, handed, 600, 6)
    assert (tokens, num_cached) == (reference.generate(prompt(600), 6), 600)


async def test_what_the_store_holds_is_not_offered(start_rig, small_store):
    prefill = await start_rig(role="prefill", store=small_store)
    handed = await prefill.submit(prompt(100), 6, hand_over=True).handed_over()
    assert not handed.offer
    whole = await prefill.submit(prompt(100, seed=1), 1, hand_over=True).handed_over()
    assert not whole.offer, "nobody goes on after the last token"


async def test_a_prompt_that_nobody_takes_is_freed_after_a_while(start_rig):
    prefill = await start_rig(role="prefill", handoff_hold_s=0.3)
    request = prefill.submit(prompt(50), 10, hand_over=True)
    await request.handed_over()
    prefill.engine.cancel(request.generation)  # as the service does once it has answered
    await asyncio.sleep(0.1)
    assert request.generation.phase is Phase.HELD
    held_s = time.monotonic()
    await prefill.idle(5.0)
    assert time.monotonic() - held_s < 3


async def test_an_offer_ends_if_its_caller_leaves_while_it_is_made(start_rig, monkeypatch):
    prefill = await start_rig(role="prefill")
    (shard,) = prefill.engine._shards
    offer, is_made = shard.offer, threading.Event()

    async def offer_slowly(name, blocks):
        done = await offer(name, blocks)
        is_made.set()
        while request.generation.phase is not Phase.ABANDONED:
            await asyncio.sleep(0.001)
        return done

    monkeypatch.setattr(shard, "offer", offer_slowly)
    request = prefill.submit(prompt(50), 10, hand_over=True)
    assert await asyncio.to_thread(is_made.wait, 10)
    assert shard.offers._offers
    prefill.engine.cancel(request.generation)
    await prefill.idle()
    assert not shard.offers._offers


async def test_an_offer_that_not_all_shards_make_is_withdrawn(start_rig, monkeypatch):
    prefill = await start_rig(role="prefill")
    (shard,) = prefill.engine._shards
    offer = shard.offer

    async def offer_and_fail(name, blocks):
        await offer(name, blocks)
        raise Unavailable("another shard is lost")

    monkeypatch.setattr(shard, "offer", offer_and_fail)
    with pytest.raises(Unavailable):
        await prefill.submit(prompt(50), 10, hand_over=True).handed_over()
    await prefill.idle()
    assert not shard.offers._offers


@pytest.mark.parametrize("harm", ["flipped", "renamed", "short", "gone", "withdrawn", "another-layout"])
async def test_what_does_not_arrive_whole_is_computed_again(start_rig, reference, monkeypatch, harm):
    """The third block is harmed: the two before it are used, nothing after."""
    prefill, decode = await pair(start_rig)
    handed = await prefill.submit(prompt(70), 10, hand_over=True).handed_over()
    read, digest, seen = offers.Offers.read, offers.checksum, []

    async def harmed_read(self, offer, name):
        seen.append(name)
        if harm == "withdrawn" and len(seen) == 3:
            self.withdraw(offer)
        data = await read(self, offer, name)
        return data[:-4] if harm == "short" and len(seen) == 3 else data

    def harmed_digest(name, data):
        """As if other bytes had been offered, or these under another name."""
        if len(seen) == 3 and harm in {"flipped", "renamed"}:
            return digest(name, bytes([data[0] ^ 1]) + data[1:]) if harm == "flipped" else digest(seen[0], data)
        return digest(name, data)

    if harm == "gone":
        await prefill.server.stop(None)
    elif harm == "another-layout":
        prefill.replica.block_servicer._fingerprint = b"x" * 32
    monkeypatch.setattr(offers.Offers, "read", harmed_read)
    monkeypatch.setattr(offers, "checksum", harmed_digest)
    tokens, num_cached = await go_on(decode, prefill, handed, 70, 10)
    assert tokens == reference.generate(prompt(70), 10)
    assert num_cached == (0 if harm in {"gone", "another-layout"} else 32)


async def test_a_block_that_is_withdrawn_while_it_is_copied_is_not_given(start_rig):
    """Its bytes may be those of the next generation."""
    prefill = await start_rig(role="prefill")
    handed = await prefill.submit(prompt(40), 10, hand_over=True).handed_over()
    offered = prefill.engine._shards[0].offers
    assert len(await offered.read(handed.offer, handed.block_names[0])) == 4 * 16 * 80 * 4
    reading = offered.read(handed.offer, handed.block_names[0])
    copies = []

    class Copy(offers.HostCopy):
        async def data(self):
            copies.append(await super().data())
            offered.withdraw(handed.offer)
            return copies[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offers, "HostCopy", Copy)
        assert await reading is None
    assert len(copies) == 1
    assert await offered.read(handed.offer, handed.block_names[0]) is None


async def test_a_store_that_is_lost_in_mid_prompt_is_made_good_directly(start_rig, reference, tmp_path):
    """The engine believed that the store would hold the prompt, and finds out at its end."""
    with RedisServer(tmp_path) as server:
        prefill, decode = await pair(start_rig, store=server.url)
        assert prefill.replica.room.num_blocks > 100
    handed = await prefill.submit(prompt(64), 10, hand_over=True).handed_over()
    assert handed.offer
    tokens, num_cached = await go_on(decode, prefill, handed, 64, 10)
    assert (tokens, num_cached) == (reference.generate(prompt(64), 10), 64)


async def test_more_blocks_than_are_fetched_at_a_time(start_rig):
    prefill, decode = await pair(start_rig, num_blocks=128, step_tokens=512)
    assert WINDOW < 1300 // 16
    handed = await prefill.submit(prompt(1300), 5, hand_over=True).handed_over()
    tokens, num_cached = await go_on(decode, prefill, handed, 1300, 5)
    alone = await start_rig(num_blocks=128, step_tokens=512)
    assert (tokens, num_cached) == (await alone.submit(prompt(1300), 5).tokens(), 1300)
