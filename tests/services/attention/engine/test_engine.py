"""One replica against the reference: every way of computing a text gives the reference's greedy tokens."""

import asyncio
import random

import pytest

from services.attention.engine import engine as engine_module
from services.attention.engine.generation import FinishReason, Phase
from services.attention.metrics import BLOCK_FAULTS
from services.runtime.errors import MoonshardError, Overloaded, Unavailable
from services.runtime.redis_server import RedisServer


def prompt(num_tokens, seed=0):
    return random.Random(seed).choices(range(320), k=num_tokens)


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 31, 32, 33, 100, 200])
async def test_greedy_tokens_are_those_of_the_reference(start_rig, reference, num_tokens):
    rig = await start_rig()
    request = rig.submit(prompt(num_tokens), 12)
    assert await request.tokens() == reference.generate(prompt(num_tokens), 12)


async def test_many_at_once_are_as_alone(start_rig, reference):
    rig = await start_rig()
    lengths = [1, 2, 16, 17, 33, 60, 5, 90]
    requests = [rig.submit(prompt(n, seed=n), 10) for n in lengths]
    for n, request in zip(lengths, requests, strict=True):
        assert await request.tokens() == reference.generate(prompt(n, seed=n), 10)


async def test_short_of_blocks_the_youngest_waits_and_comes_back(start_rig, reference):
    rig = await start_rig(num_blocks=8)
    requests = [rig.submit(prompt(20, seed=n), 40) for n in range(4)]
    for n, request in enumerate(requests):
        assert await request.tokens() == reference.generate(prompt(20, seed=n), 40)


async def test_a_prefix_in_memory_is_used(start_rig, reference):
    rig = await start_rig()
    await rig.submit(prompt(70), 4).tokens()
    request = rig.submit([*prompt(70), 5], 6)
    assert (await request.next()).num_cached == 64
    again = rig.submit(prompt(64), 6)
    first = await again.next()
    assert first.num_cached == 48  # the last token is computed for its logits
    expected = reference.generate(prompt(64), 6)
    assert [first.choices[0].token_id, *await again.tokens()] == expected


async def test_seeded_tokens_do_not_depend_on_the_company(start_rig):
    rig = await start_rig()
    drawn = {"temperature": 1.0, "top_p": 0.95, "seed": 1234}
    alone = await rig.submit(prompt(40), 20, **drawn).tokens()
    requests = [rig.submit(prompt(40), 20, **drawn)] + [rig.submit(prompt(n, seed=n), 25) for n in range(1, 16)]
    assert await requests[0].tokens() == alone
    moved = await rig.submit(prompt(40) + alone[:7], 20, num_prompt=40, **drawn).tokens()
    assert moved == alone[7:]
    assert await rig.submit(prompt(40), 20, **{**drawn, "seed": 1}).tokens() != alone
    for request in requests[1:]:
        await request.tokens()


async def test_it_ends_at_a_stop_token_or_at_the_length(start_rig, reference):
    rig = await start_rig(num_blocks=4)
    expected = reference.generate(prompt(30), 40)
    stop = expected[4]
    request = rig.submit(prompt(30), 40, stop_token_ids=(stop,))
    assert await request.tokens() == expected[: expected.index(stop) + 1]
    last = rig.submit(prompt(30), 1000)
    assert len(await last.tokens()) == 64 - 30  # the pool is the limit


async def test_a_client_that_leaves_frees_its_blocks(start_rig):
    rig = await start_rig()
    request = rig.submit(prompt(100), 500)
    await request.next()
    rig.engine.cancel(request.generation)
    await rig.idle()
    waiting = [rig.submit(prompt(100, seed=n), 900) for n in range(4)]
    for each in waiting:
        rig.engine.cancel(each.generation)
    await rig.idle()


async def test_the_waiting_queue_is_bounded(start_rig):
    rig = await start_rig(max_running=1, max_waiting=2)
    requests = [rig.submit(prompt(10, seed=n), 30) for n in range(8)]
    outcomes = await asyncio.gather(*(request.tokens() for request in requests), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
    assert refused and all(error.retry_after_s for error in refused)
    assert sum(isinstance(outcome, list) and len(outcome) == 30 for outcome in outcomes) + len(refused) == 8


async def test_draining_gives_streams_back(start_rig):
    rig = await start_rig()
    request = rig.submit(prompt(10), 500)
    await request.next()
    rig.engine.drain()
    with pytest.raises(Unavailable):
        await request.tokens()


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 95, 96])
async def test_prefill_hands_over_through_the_store(start_rig, reference, store, num_tokens):
    prefill = await start_rig(role="prefill", store=store)
    decode = await start_rig(store=store)
    expected = reference.generate(prompt(num_tokens), 10)
    handed = await prefill.submit(prompt(num_tokens), 10, hand_over=True).handed_over()
    assert handed.first.choice.token_id == expected[0]
    assert len(handed.block_names) == num_tokens // 16
    assert bool(handed.tail_name) == bool(num_tokens % 16)
    request = decode.submit([*prompt(num_tokens), expected[0]], 10, num_prompt=num_tokens, tail=handed)
    first = await request.next()
    assert first.num_cached == num_tokens  # not one prompt token was computed twice
    assert [first.choices[0].token_id, *await request.tokens()] == expected[1:]


async def test_a_lost_store_is_survived(start_rig, reference, tmp_path):
    with RedisServer(tmp_path) as server:
        prefill = await start_rig(role="prefill", store=server.url)
        decode = await start_rig(store=server.url)
        handed = await prefill.submit(prompt(50), 10, hand_over=True).handed_over()
    expected = reference.generate(prompt(50), 10)
    request = decode.submit([*prompt(50), expected[0]], 10, num_prompt=50, tail=handed)
    assert await request.tokens() == expected[1:]
    again = await prefill.submit(prompt(60, seed=1), 10, hand_over=True).handed_over()
    assert again.first.choice.token_id == reference.generate(prompt(60, seed=1), 1)[0]


async def test_blocks_that_left_the_store_are_published_again(start_rig, store):
    prefill = await start_rig(role="prefill", store=store)
    await prefill.submit(prompt(64), 10, hand_over=True).handed_over()
    blobs = prefill.replica.store
    layout = prefill.replica.engine._shards[0]._handoff
    names = (await prefill.submit(prompt(64), 10, hand_over=True).handed_over()).block_names
    await blobs.delete([layout._block_key(name) for name in names])
    handed = await prefill.submit(prompt(64), 10, hand_over=True).handed_over()
    assert await blobs.exists([layout._block_key(name) for name in handed.block_names]) == [True] * 4


async def test_the_finish_is_reported_once(start_rig):
    rig = await start_rig()
    request = rig.submit(prompt(5), 3)
    reasons = [(await request.next()).finish_reason for _ in range(3)]
    assert reasons == [None, None, FinishReason.LENGTH]
    await asyncio.sleep(0.05)
    assert request.events.empty()


async def test_an_idle_engine_names_and_counts_faults_and_goes_on(start_rig, reference, monkeypatch, caplog):
    monkeypatch.setattr(engine_module, "CHECK_EVERY_S", 0.0)
    rig = await start_rig()
    pool, before = rig.engine._roster.pool, BLOCK_FAULTS._value.get()
    await rig.submit(prompt(20), 2).tokens()
    await rig.idle()
    assert BLOCK_FAULTS._value.get() == before
    lost = pool._blank.pop(0)
    assert await rig.submit(prompt(20), 6).tokens() == reference.generate(prompt(20), 6)
    while BLOCK_FAULTS._value.get() == before:
        await asyncio.sleep(0.01)
    assert "the block pool is at fault: a block is lost" in caplog.text
    pool._blank.insert(0, lost)
    await rig.submit(prompt(20), 1).tokens()  # the load is taken anew


@pytest.mark.parametrize("where", ["fetcher", "forward"])
async def test_an_unforeseen_error_ends_its_generation_alone(start_rig, reference, monkeypatch, where):
    rig = await start_rig()
    broken = rig.engine._lives._fetcher if where == "fetcher" else rig.engine._forward
    with monkeypatch.context() as patch:

        async def fail(*args):
            raise ZeroDivisionError

        patch.setattr(broken, "fetch" if where == "fetcher" else "run", fail)
        with pytest.raises(MoonshardError, match="internal error"):
            await rig.submit(prompt(20), 5).tokens()
    assert await rig.submit(prompt(20), 5).tokens() == reference.generate(prompt(20), 5)


async def test_a_caller_that_leaves_while_the_store_is_read(start_rig, store, monkeypatch):
    """Its blocks stay until the store has let go of them."""
    rig = await start_rig(store=store)
    reading, go_on = asyncio.Event(), asyncio.Event()
    fetch = rig.engine._lives._fetcher.fetch
    loop = asyncio.get_running_loop()

    async def slow(generation):
        loop.call_soon_threadsafe(reading.set)
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return await fetch(generation)

    monkeypatch.setattr(rig.engine._lives._fetcher, "fetch", slow)
    request = rig.submit(prompt(40), 5)
    await reading.wait()
    rig.engine.cancel(request.generation)
    other = rig.submit(prompt(10), 5)
    while request.generation.phase is not Phase.ABANDONED:
        await asyncio.sleep(0.01)
    assert rig.engine.load.num_free_blocks < 64
    go_on.set()
    await other.tokens()
    while request.generation.phase is Phase.ABANDONED:
        await asyncio.sleep(0.01)
    assert request.generation.phase is Phase.OUTSIDE and request.events.empty()
