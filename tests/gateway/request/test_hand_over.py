"""Whatever replica is lost, at whatever token: the client's stream goes on without a gap and without a repeat."""

import asyncio

import pytest

from services.runtime.errors import (
    DeadlineExceeded,
    ExpertsUnavailable,
    InvalidRequest,
    KvMissing,
    MoonshardError,
    NumericError,
    Overloaded,
    Unavailable,
)
from tests.gateway.streams import stream_chat

ANSWER = "Let me see. 🙂</think>Wörds, wörds<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
ANSWER += '<|tool_call_argument_begin|>{"a": "🙂"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>'
TOOLS = [{"type": "function", "function": {"name": "f"}}]
SLOW = {"prefill_min_tokens": 10_000}  # nothing goes to a prefill replica


def check_whole(streamed):
    assert streamed.error is None
    assert streamed.thoughts == {0: "Let me see. 🙂"}
    assert streamed.text == {0: "Wörds, wörds"}
    assert streamed.calls == {0: [["functions.f:0", "f", '{"a": "🙂"}']]}
    assert streamed.finish == {0: "tool_calls"}


async def stream(site, **fields):
    return await stream_chat(site.http, tools=TOOLS, seed=5, **fields)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 3, 7, 11, 19, 24, 30])
@pytest.mark.parametrize("prefills", [0, 1])
async def test_a_decode_replica_dies(start_site, num_tokens, prefills):
    site = await start_site(decodes=2, prefills=prefills, answer=ANSWER)
    for engine in site.decodes:
        engine.die_after = num_tokens
        engine.token_s = 0.001
    # The first dies; the other lives, and is asked only after it because it seems full.
    site.decodes[1].die_after = None
    site.decodes[1].load.num_free_blocks = 1
    await site.reports_of_load()
    streamed = await stream(site)
    check_whole(streamed)
    first, second = site.decodes[0].decodes[0], site.decodes[1].decodes[0]
    assert second.sampling == first.sampling
    num_known = len(first.prompt.token_ids) - first.prompt.num_prompt_tokens + num_tokens
    assert len(second.prompt.token_ids) == second.prompt.num_prompt_tokens + num_known
    assert streamed.usage[0]["completion_tokens"] == len(site.answer_ids)


@pytest.mark.parametrize("num_tokens", [0, 1, 9])
@pytest.mark.slow
async def test_the_only_decode_replica_restarts(start_site, num_tokens):
    site = await start_site(answer=ANSWER)
    engine = site.decodes[0]
    engine.die_after = num_tokens
    streaming = asyncio.create_task(stream(site))
    while engine.is_up:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    await engine.start()
    check_whole(await streaming)
    assert len(engine.decodes) == 2


@pytest.mark.slow
async def test_it_dies_again_and_again(start_site):
    site = await start_site(answer=ANSWER)
    engine = site.decodes[0]
    streaming = asyncio.create_task(stream(site))
    num_deaths = 0
    while not streaming.done():
        if not engine.is_up:
            num_deaths += 1
            await engine.start()
        engine.die_after = 3
        await asyncio.sleep(0.005)
    check_whole(await streaming)
    assert num_deaths >= 4


@pytest.mark.parametrize(
    "failure",
    [
        Unavailable("draining"),
        DeadlineExceeded("a step took too long"),
        ExpertsUnavailable("shard 1"),
        Overloaded("the queue is full"),
        MoonshardError("a mistake"),
    ],
    ids=lambda failure: type(failure).__name__,
)
@pytest.mark.parametrize("num_tokens", [0, 5])
async def test_a_failure_that_another_replica_makes_good(start_site, failure, num_tokens):
    site = await start_site(decodes=2, answer=ANSWER, **SLOW)
    site.decodes[0].failure, site.decodes[0].fail_after = failure, num_tokens
    site.decodes[1].load.num_free_blocks = 1
    await site.reports_of_load()
    check_whole(await stream(site))
    assert len(site.decodes[0].decodes) == len(site.decodes[1].decodes) == 1


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (InvalidRequest("no", field="top_p"), 400, "invalid_request_error"),
        (NumericError("NaN"), 500, "server_error"),
    ],
    ids=["invalid", "numeric"],
)
@pytest.mark.parametrize("num_tokens", [0, 5])
async def test_a_failure_that_stays(start_site, failure, status, kind, num_tokens):
    site = await start_site(decodes=2, answer=ANSWER, **SLOW)
    for engine in site.decodes:
        engine.failure, engine.fail_after = failure, num_tokens
    whole = await site.chat()
    assert whole.status_code == status
    assert whole.json()["error"]["type"] == kind
    assert "NaN" not in whole.text
    if num_tokens:
        error = (await stream(site)).error
    else:
        answer = await site.chat(stream=True)
        assert answer.status_code == status
        error = answer.json()["error"]
    assert error == whole.json()["error"]
    assert sum(len(engine.decodes) for engine in site.decodes) == 2


@pytest.mark.parametrize("num_tokens", [1, 5])
async def test_silence_counts_as_a_loss(start_site, num_tokens):
    site = await start_site(decodes=2, answer=ANSWER, stall_s=0.2, **SLOW)
    site.decodes[0].hang_after = num_tokens
    site.decodes[1].load.num_free_blocks = 1
    await site.reports_of_load()
    check_whole(await stream(site))
    assert len(site.decodes[1].decodes) == 1
    while site.decodes[0].num_running:
        await asyncio.sleep(0.01)


async def test_a_request_that_kills_its_replicas_ends(start_site):
    site = await start_site(decodes=6, answer=ANSWER, **SLOW)
    for engine in site.decodes:
        engine.failure, engine.fail_after = MoonshardError("a mistake"), 4
    # The first replica gives four tokens; those after it none, so the losses are in a row.
    for engine in site.decodes[1:]:
        engine.fail_after = 0
    site.decodes[0].load.num_free_blocks = 200
    await site.reports_of_load()
    streamed = await stream(site)
    assert streamed.error["type"] == "server_error"
    assert streamed.thoughts[0] == "Let me see."[: len(streamed.thoughts[0])] != ""
    assert sum(len(engine.decodes) for engine in site.decodes) == 4


async def test_missing_blocks_are_computed_by_the_decode_replica(site):
    engine = site.decodes[0]
    engine.failure, engine.num_failures = KvMissing("3 of 4 blocks are gone"), 1
    assert (await site.chat()).status_code == 200
    assert engine.decodes[0].HasField("manifest")
    assert not engine.decodes[-1].HasField("manifest")


async def test_a_prefill_replica_dies(start_site):
    site = await start_site(prefills=2, answer=ANSWER)
    for engine in site.prefills:
        engine.die_after = 0
    site.prefills[1].die_after = None
    site.prefills[1].load.num_queued_tokens = 5000
    await site.reports_of_load()
    check_whole(await stream(site))
    assert [len(engine.prefills) for engine in site.prefills] == [1, 1]


async def test_all_prefill_replicas_die(start_site):
    site = await start_site(prefills=2, answer=ANSWER)
    for engine in site.prefills:
        engine.die_after = 0
    check_whole(await stream(site))
    assert not site.decodes[0].decodes[0].HasField("manifest")


@pytest.mark.parametrize("num_tokens", [0, 1, 6, 12, 20, 27])
@pytest.mark.slow
async def test_a_tokenizer_dies_in_the_middle(start_site, num_tokens):
    site = await start_site(tokenizers=2, answer=ANSWER, **SLOW)
    engine = site.decodes[0]
    engine.token_s = 0.01
    streaming = asyncio.create_task(stream(site))
    while engine.num_sent < num_tokens:
        await asyncio.sleep(0.001)
    await site.tokenizers[0].stop()
    await asyncio.sleep(0.05)
    await site.tokenizers[0].start()
    await site.sees("tokenizer", 2)
    await site.tokenizers[1].stop()
    check_whole(await streaming)


async def test_the_only_tokenizer_restarts(start_site):
    site = await start_site(answer=ANSWER, **SLOW)
    engine = site.decodes[0]
    engine.token_s = 0.01
    streaming = asyncio.create_task(stream(site))
    while engine.num_sent < 8:
        await asyncio.sleep(0.001)
    await site.tokenizers[0].stop()
    await asyncio.sleep(0.3)
    await site.tokenizers[0].start()
    check_whole(await streaming)


async def test_everything_is_lost_in_the_middle(start_site):
    site = await start_site(answer=ANSWER, resume_s=0.5)
    site.decodes[0].die_after = 5
    streamed = await stream(site)
    assert streamed.error["type"] == "server_unavailable"
    assert streamed.finish == {}
    assert streamed.thoughts[0]


async def test_many_streams_survive_one_death(start_site):
    site = await start_site(decodes=2, answer=ANSWER)
    for engine in site.decodes:
        engine.token_s = 0.01
    streams = [asyncio.create_task(stream(site, n=2)) for _ in range(8)]
    while sum(engine.num_sent for engine in site.decodes) < 60:
        await asyncio.sleep(0.005)
    assert all(engine.num_running for engine in site.decodes)
    await site.decodes[0].stop()
    for streamed in await asyncio.gather(*streams):
        assert streamed.error is None
        for choice in range(2):
            assert streamed.text[choice] == "Wörds, wörds"
            assert streamed.calls[choice] == [["functions.f:0", "f", '{"a": "🙂"}']]
            assert streamed.finish[choice] == "tool_calls"


async def test_a_decode_replica_learns_where_the_prompt_was_computed(start_site):
    """Where the store does not hold it, its blocks come from there."""
    site = await start_site(answer=ANSWER)
    prefill = site.prefills[0]
    for offer in ("", "o" * 32):
        prefill.offer = offer
        check_whole(await stream(site))
    without, with_offer = (request.manifest for request in site.decodes[0].decodes)
    assert (without.offer, without.source) == ("", "")
    assert (with_offer.offer, with_offer.source) == ("o" * 32, prefill.address)
