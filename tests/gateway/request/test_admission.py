"""Admission by time: what can begin soon is admitted, the rest is refused at once and learns when to come back."""

import asyncio
import heapq
import math
import random
import time

import pytest

from gateway.request.forecast import (
    GRACE_S,
    MAX_PROMISE_S,
    MAX_UNKNOWN,
    MIN_SAMPLES,
    REQUEST_TOKENS,
    UNKNOWN_S,
    Forecast,
)

LIMIT_S = 60
CHAT = "/v1/chat/completions"
BODY = {"model": "kimi-k2.6", "messages": [{"role": "user", "content": "Hi"}]}


class Clock:
    """A time that the test moves. Replicas are ready since second 0."""

    def __init__(self):
        self.now_s = 0.0
        self.since_s = 0.0
        self.forecast = Forecast(lambda: self.since_s, lambda: self.now_s)

    def come(self, num_tokens):
        ticket = self.forecast.enter()
        self.forecast.measure(ticket, num_tokens - int(REQUEST_TOKENS))
        return ticket

    def begin_all(self, tickets, seconds_each):
        for ticket in tickets:
            self.now_s += seconds_each
            self.forecast.begin(ticket)


@pytest.fixture
def clock():
    return Clock()


def test_nothing_is_refused_before_anything_was_measured(clock):
    tickets = [clock.come(1000) for _ in range(1000)]
    assert clock.forecast.wait_s() == 0
    clock.begin_all(tickets[: MIN_SAMPLES - 1], 1.0)
    assert clock.forecast.wait_s() == 0
    clock.begin_all(tickets[MIN_SAMPLES - 1 : MIN_SAMPLES], 1.0)
    assert clock.forecast.wait_s() == pytest.approx(1000 - MIN_SAMPLES)


def test_the_wait_is_the_work_before_it_over_the_rate(clock):
    clock.begin_all([clock.come(1000) for _ in range(50)], 0.5)
    assert clock.forecast.wait_s() == 0, "nobody waits"
    waiting = [clock.come(4000) for _ in range(10)]
    assert clock.forecast.wait_s() == pytest.approx(20)
    clock.forecast.leave(waiting[0])
    assert clock.forecast.wait_s() == pytest.approx(18)


def test_a_rate_that_changes_is_followed(clock):
    tickets = [clock.come(1000) for _ in range(400)]
    clock.begin_all(tickets[:100], 0.1)
    assert clock.forecast.wait_s() == pytest.approx(30)
    clock.begin_all(tickets[100:300], 0.4)
    assert clock.forecast.wait_s() == pytest.approx(40, rel=0.05)


def test_silence_counts_before_it_ends(clock):
    tickets = [clock.come(1000) for _ in range(110)]
    clock.begin_all(tickets[:100], 0.1)
    before_s = clock.forecast.wait_s()
    clock.now_s += 30
    assert clock.forecast.wait_s() > 5 * before_s


def test_the_time_without_a_replica_is_no_measure(clock):
    tickets = [clock.come(1000) for _ in range(110)]
    clock.begin_all(tickets[:100], 0.1)
    clock.since_s = None
    clock.now_s += 600
    assert clock.forecast.wait_s() == 0, "whoever comes is held"
    clock.since_s = clock.now_s
    clock.begin_all(tickets[100:101], 0.1)
    assert clock.forecast.wait_s() == pytest.approx(0.9)


def test_few_wait_before_anything_was_measured(clock):
    tickets = [clock.come(1000) for _ in range(MAX_UNKNOWN)]
    clock.now_s += 0.5
    assert clock.forecast.refusal_s(60) == pytest.approx(UNKNOWN_S)
    clock.now_s += 20
    assert clock.forecast.refusal_s(60) == pytest.approx(20.5), "as long as nothing begins"
    clock.since_s = None
    assert clock.forecast.refusal_s(60) is None, "whoever comes is held"
    clock.since_s = 0.0
    clock.begin_all(tickets[:MIN_SAMPLES], 0.1)
    assert clock.forecast.refusal_s(600) is None


@pytest.mark.parametrize(("newcomers_per_s", "says_so", "share"), [(0, False, 0.98), (1, True, 0.98), (1, False, 0.65)])
def test_a_client_that_comes_back_as_asked_is_admitted(clock, newcomers_per_s, says_so, share):
    """700 at once, where two begin in a second, give or take a half; with others that may say that they are new."""
    dice = random.Random(1)
    clock.begin_all([clock.come(1000) for _ in range(50)], 0.5)
    coming = [(clock.now_s, 0) for _ in range(700)]  # when, and the attempt
    coming += [(clock.now_s + second, 0) for second in range(300) for _ in range(newcomers_per_s)]
    heapq.heapify(coming)
    line, attempts, waits = [], [], []
    next_s = clock.now_s
    while coming or line:
        if coming and (not line or coming[0][0] <= next_s):
            clock.now_s, attempt = heapq.heappop(coming)
            again_s = clock.forecast.refusal_s(LIMIT_S, attempt > 0 if says_so else None)
            if again_s is not None:
                heapq.heappush(coming, (clock.now_s + math.ceil(again_s), attempt + 1))
                continue
            next_s = next_s if line else clock.now_s + 0.5
            line.append((clock.come(1000), clock.now_s))
            attempts.append(attempt)
        else:
            ticket, came_s = line.pop(0)
            clock.now_s = next_s
            clock.forecast.begin(ticket)
            waits.append(clock.now_s - came_s)
            next_s += 0.5 * dice.uniform(0.5, 1.5)
    assert len(waits) == 700 + 300 * newcomers_per_s
    assert max(waits) < 1.2 * LIMIT_S
    assert sum(attempt <= 1 for attempt in attempts) / len(attempts) > share
    assert max(attempts) <= 4


def test_a_promise_that_nobody_keeps_is_forgotten(clock):
    clock.begin_all([clock.come(1000) for _ in range(50)], 0.5)
    waiting = [clock.come(1000) for _ in range(2 * LIMIT_S)]
    promised_s = [clock.forecast.refusal_s(LIMIT_S - 1) for _ in range(20)]
    assert promised_s == sorted(promised_s)
    assert promised_s[-1] - promised_s[0] == pytest.approx(19 * 0.5, rel=0.1)
    for ticket in waiting:
        clock.forecast.leave(ticket)
    clock.now_s += promised_s[-1] + GRACE_S + 1
    assert clock.forecast.refusal_s(0.0) is None
    assert not clock.forecast._promised


def test_promises_have_a_longest_time(clock):
    clock.begin_all([clock.come(1000) for _ in range(50)], 60)
    for _ in range(10):
        clock.come(1000)
    promised_s = [clock.forecast.refusal_s(LIMIT_S) for _ in range(100)]
    assert max(promised_s) == MAX_PROMISE_S
    assert len(clock.forecast._promised) < 20


async def warm(site):
    for _ in range(MIN_SAMPLES):
        assert (await site.chat()).status_code == 200


async def ask_timed(site, headers=None):
    began_s = time.monotonic()
    answer = await site.http.post(CHAT, json=BODY, headers=headers)
    return answer, time.monotonic() - began_s


@pytest.mark.slow
async def test_more_at_once_than_can_begin(start_site):
    site = await start_site(begin_s=1.5)
    engine = site.prefills[0]
    engine.prefill_s, engine.prefill_slots = 0.1, asyncio.Semaphore(1)
    await warm(site)
    answers = await asyncio.gather(*(ask_timed(site) for _ in range(60)))
    served = [seconds for answer, seconds in answers if answer.status_code == 200]
    refused = [(answer, seconds) for answer, seconds in answers if answer.status_code == 429]
    assert len(served) + len(refused) == 60
    # At most ten begin in a second, so about fifteen are worth waiting for.
    assert 3 <= len(served) <= 30
    for answer, seconds in refused:
        assert seconds < max(served), "at once"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "requests wait to begin" in answer.json()["error"]["message"]


@pytest.mark.slow
async def test_clients_that_come_back_as_asked_are_served(start_site):
    site = await start_site(begin_s=1.5)
    engine = site.prefills[0]
    engine.prefill_s, engine.prefill_slots = 0.1, asyncio.Semaphore(1)
    await warm(site)

    async def attempts():
        for attempt in range(1, 6):
            answer, _ = await ask_timed(site)
            if answer.status_code == 200:
                return attempt
            await asyncio.sleep(int(answer.headers["retry-after"]))
        return None

    needed = await asyncio.gather(*(attempts() for _ in range(60)))
    assert None not in needed
    assert sum(attempt > 2 for attempt in needed) <= 12
    assert (await site.chat()).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x-stainless-read-timeout", "x-stainless-timeout"])
async def test_a_client_that_would_not_wait_so_long(start_site, name):
    site = await start_site()
    engine = site.prefills[0]
    engine.prefill_s, engine.prefill_slots = 0.1, asyncio.Semaphore(1)
    await warm(site)
    waiting = [asyncio.create_task(site.chat()) for _ in range(20)]
    while len(engine.prefills) < MIN_SAMPLES + 15:
        await asyncio.sleep(0.005)
    assert (await site.http.post(CHAT, json=BODY, headers={name: "0.2"})).status_code == 429
    assert (await site.http.post(CHAT, json=BODY, headers={name: "never"})).status_code == 200
    assert (await site.http.post(CHAT, json=BODY, headers={name: "60.0"})).status_code == 200
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {200}


@pytest.mark.slow
async def test_the_deadline_counts_too(start_site):
    site = await start_site(request_s=0.7)
    engine = site.prefills[0]
    engine.prefill_s, engine.prefill_slots = 0.1, asyncio.Semaphore(1)
    await warm(site)
    answers = await asyncio.gather(*(ask_timed(site) for _ in range(40)))
    refused = [seconds for answer, seconds in answers if answer.status_code == 429]
    assert len(refused) > 15
    assert any(answer.status_code == 200 for answer, _ in answers)


@pytest.mark.slow
async def test_a_restart_is_waited_out(start_site):
    site = await start_site(hold_s=0.1, restart_s=20)
    engine = site.decodes[0]
    await engine.stop()
    await site.sees("decode", 0)
    asked = asyncio.create_task(site.chat())
    await asyncio.sleep(1)
    assert not asked.done()
    await engine.start()
    assert (await asked).status_code == 200


@pytest.mark.slow
async def test_a_restart_is_measured(start_site):
    site = await start_site(hold_s=0.1, restart_s=0.2)
    assert site.gateway.cluster.decodes.hold_s == pytest.approx(0.1)
    await site.decodes[0].stop()
    await site.sees("decode", 0)
    assert site.gateway.cluster.decodes.hold_s == pytest.approx(0.2)
    await asyncio.sleep(0.6)
    await site.decodes[0].start()
    await site.sees("decode", 1)
    assert site.gateway.cluster.decodes.hold_s >= 1.2


async def test_a_role_that_was_never_there_is_not_waited_for(start_site):
    site = await start_site(hold_s=0.1, restart_s=20, decode_places=("127.0.0.1:1",))
    answer, seconds = await ask_timed(site)
    assert answer.status_code == 503
    assert seconds < 5
