"""The policy on traces: it wakes at once, never takes away what runs, and does not swing."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.autoscaler.policy import Current, Limits, RoleDemand, Timing, decide
from tests.services.autoscaler.plant import LIMITS, TIMING, chat, numbers, run

RECORDED = sorted(Path(__file__).parent.glob("recorded_*.json"))
NOTHING = chat(0)


def test_nothing_to_do():
    moments = run(lambda now_s: NOTHING, 600)
    assert all(set(moment.decision.replicas.values()) == {0} for moment in moments)


def test_the_whole_path_wakes_with_the_first_decision():
    decision = decide(chat(1), dict.fromkeys(LIMITS, Current()), LIMITS, TIMING, 0, {})
    assert decision.replicas == {"vision": 0, "prefill": 0, "decode": 1, "expert": 1}
    decision = decide(chat(1, 50, 1), dict.fromkeys(LIMITS, Current()), LIMITS, TIMING, 0, {})
    assert decision.replicas == {"vision": 1, "prefill": 1, "decode": 1, "expert": 1}


@pytest.mark.parametrize("num_requests, replicas", [(1, 1), (10, 1), (11, 2), (40, 4), (1000, 4)])
def test_the_load_says_how_many(num_requests, replicas):
    decision = decide(chat(num_requests), dict.fromkeys(LIMITS, Current()), LIMITS, TIMING, 0, {})
    assert decision.replicas["decode"] == replicas


def test_full_blocks_ask_for_another_replica():
    demand = {"decode": RoleDemand(3, 3, blocks_used=90, blocks_each=100)}
    assert decide(demand, {"decode": Current(1, 1)}, LIMITS, TIMING, 0, {}).replicas == {"decode": 2}


def test_zero_after_the_cool_down_and_not_before():
    moments = run(lambda now_s: chat(1, 100) if now_s < 100 else NOTHING, 300)
    assert numbers(moments, "decode") == [1, 0]
    gone_s = next(moment.at_s for moment in moments if moment.at_s > 0 and moment.decision.replicas["decode"] == 0)
    assert 100 + TIMING.idle_s - 2 <= gone_s <= 100 + TIMING.idle_s + 2
    # Experts go with the last who needs them.
    assert numbers(moments, "expert") == [1, 0]
    assert next(m.at_s for m in moments if m.at_s > 0 and not m.decision.replicas["expert"]) == gone_s


def test_a_path_that_starts_is_not_given_up_when_its_client_is():
    """The first request waits 10 s and leaves; the weights take 300 s to load, longer than the cool-down."""
    moments = run(lambda now_s: chat(1, 100) if now_s < 10 else NOTHING, 600, starts_s=300)
    ready = [moment.at_s for moment in moments if moment.current["decode"].ready]
    assert ready[0] == 300
    assert ready[-1] - ready[0] >= TIMING.idle_s - 4
    assert moments[-1].decision.replicas["decode"] == 0


def test_a_replica_that_never_starts_is_given_up():
    moments = run(lambda now_s: chat(1, 100) if now_s < 10 else NOTHING, 900, starts_s=1e9)
    assert numbers(moments, "decode") == [1, 0]
    assert moments[int((TIMING.startup_s - 10) / 2)].decision.replicas["decode"] == 1


def test_a_gap_shorter_than_the_window_changes_nothing():
    moments = run(lambda now_s: chat(35 if now_s % 40 < 20 else 3, 100), 600)
    assert numbers(moments, "decode") == [4]


def test_noise_around_a_threshold_does_not_swing():
    noise = random.Random(3)
    moments = run(lambda now_s: chat(noise.choice([19, 20, 21, 22]), 100), 1200)
    assert numbers(moments, "decode") in ([2, 3], [3])


def test_a_ramp_is_followed_up_and_down_in_steps():
    moments = run(lambda now_s: chat(round(39 * math.sin(math.pi * now_s / 2400)), 100), 2400)
    assert numbers(moments, "decode") in ([0, 1, 2, 3, 4, 3, 2, 1], [0, 1, 2, 3, 4, 3, 2, 1, 0])


def test_while_a_gateway_cannot_be_heard_nothing_gets_smaller():
    moments = run(lambda now_s: chat(25, 100) if now_s < 100 else None if now_s < 1000 else NOTHING, 1200)
    assert {moment.decision.replicas["decode"] for moment in moments if moment.at_s < 1000} == {3}
    assert moments[-1].decision.replicas["decode"] == 0
    # The silence counts as work: who knows what was running.
    assert min(m.at_s for m in moments if m.decision.replicas["decode"] == 0) >= 1000 + TIMING.idle_s - 2


def test_a_new_leader_does_not_take_away_what_it_finds():
    found = {"decode": Current(4, 4)}
    memory = {}
    for now_s in range(0, int(TIMING.down_s), 2):
        decision = decide(chat(1), found, LIMITS, TIMING, now_s, memory)
        memory = decision.memory
        assert decision.replicas["decode"] == 4
    assert decide(chat(1), found, LIMITS, TIMING, TIMING.down_s + 1, memory).replicas["decode"] == 1


def test_limits_win():
    limits = {"decode": Limits(2, 3, 10)}
    for current in (0, 2, 9):
        for demand in (NOTHING, chat(1000), None):
            wanted = decide(demand, {"decode": Current(current, current)}, limits, TIMING, 0, {}).replicas["decode"]
            assert wanted >= 2
            assert demand is None or wanted <= 3


def test_a_role_that_is_not_known_yet_is_left_alone():
    assert decide(chat(1), {}, LIMITS, TIMING, 0, {}).replicas == {}


# Pieces of a trace: how long, how many chats, prompt tokens that wait, images.
pieces = st.lists(
    st.tuples(st.integers(2, 120), st.integers(0, 60), st.integers(0, 5000), st.integers(0, 10)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(pieces, st.integers(0, 90), st.sampled_from([2.0, 5.0]))
def test_any_trace(trace, starts_s, every_s):
    demands = [chat(*load) for length, *load in trace for _ in range(length)]
    moments = run(
        lambda now_s: demands[min(int(now_s), len(demands) - 1)], len(demands), every_s=every_s, starts_s=starts_s
    )
    hold(moments)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_recorded(path):
    """What a gateway told while the requests of `python -m tests.bench scale` came and went."""
    told = [
        (at_s, {role: RoleDemand(**of) for role, of in demand.items()}) for at_s, demand in json.loads(path.read_text())
    ]
    timing = Timing(idle_s=3, down_s=2, startup_s=60)

    def at(now_s):
        return [demand for at_s, demand in told if at_s <= now_s][-1]

    moments = run(at, told[-1][0], every_s=0.5, starts_s=2, timing=timing)
    hold(moments, timing)
    for role in ("decode", "expert"):
        found = numbers(moments, role)
        assert sum(before == 0 for before, _ in pairwise(found)) == 3, "three cycles, and no further wake between them"


def hold(moments, timing=TIMING):
    """What is true of every decision."""
    for moment in moments:
        for role, wanted in moment.decision.replicas.items():
            of = moment.demand.get(role, RoleDemand())
            assert LIMITS[role].min <= wanted <= LIMITS[role].max
            if of.num_requests:
                assert wanted >= 1, "wakes within one decision, and stays while anything runs"
            assert wanted >= min(LIMITS[role].max, math.ceil(of.load / LIMITS[role].target)), "enough for what runs"
        attending = moment.decision.replicas["prefill"] + moment.decision.replicas["decode"]
        assert not attending or moment.decision.replicas["expert"]
    for role in LIMITS:
        changes = [
            (before.decision.replicas[role], after.decision.replicas[role], after.at_s)
            for before, after in pairwise(moments)
            if before.decision.replicas[role] != after.decision.replicas[role]
        ]
        for (low, high, up_s), (_, lower, down_s) in pairwise(changes):
            if low < high > lower:
                assert down_s - up_s >= min(timing.down_s, timing.idle_s), "a step up is kept for a while"
