"""The engine's bookkeeping and policy, without any arithmetic."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.attention.engine.generation import Generation, Phase
from services.attention.engine.pool import BlockPool
from services.attention.engine.roster import Roster
from services.attention.sampling.on_host import SamplingParams
from services.checkpoint.block_names import BlockNames
from services.runtime.errors import Overloaded

BLOCK_TOKENS = 4


def generation(num_tokens=5, *, num_computed=0, first=0, max_tokens=1000, min_new_tokens=0):
    return Generation(
        request_id="test",
        token_ids=list(range(first, first + num_tokens)),
        num_prompt=num_tokens,
        sampling=SamplingParams(temperature=0.0, stop_token_ids=(999,), min_new_tokens=min_new_tokens),
        max_tokens=max_tokens,
        names=BlockNames(b"root", BLOCK_TOKENS),
        sink=lambda event: None,
        num_computed=num_computed,
    )


def roster(num_blocks=8, max_running=8, max_waiting=8):
    return Roster(BlockPool(num_blocks), BLOCK_TOKENS, max_running, max_waiting)


def admit_all(roster):
    for admitted in roster.admit():
        roster.start(admitted, 0, False)


def test_waiting_queue_is_bounded():
    full = roster(max_waiting=1)
    full.submit(generation())
    with pytest.raises(Overloaded) as refused:
        full.submit(generation())
    assert refused.value.retry_after_s


def test_none_passes_the_one_whose_turn_it_is_even_if_it_would_fit():
    small = roster(num_blocks=4)
    small.submit(generation(5, first=100))
    admit_all(small)
    large, little = generation(12), generation(3, first=50)
    small.submit(large)
    little.due = large.due + 1  # as after a long wait of the large one
    small.submit(little)
    assert small.admit() == []
    assert list(small.of(Phase.WAITING)) == [large, little]
    assert small.remove(large)
    assert small.admit() == [little]


def test_a_short_prompt_waits_before_a_long_one():
    full = roster(max_running=0)
    long, short = generation(20), generation(3)
    full.submit(long)
    full.submit(short)
    assert list(full.of(Phase.WAITING)) == [short, long]


def test_a_generation_is_in_one_phase_at_a_time():
    one = roster()
    generations = [generation(5, first=10 * n) for n in range(3)]
    for each in generations:
        assert each.phase is Phase.OUTSIDE
        one.submit(each)
    assert one.admit() == generations
    leaving, gone, running = generations
    for each in (leaving, running):
        one.start(each, 0, False)
    one.leave(leaving)
    one.abandon(gone)
    phases = {phase: list(one.of(phase)) for phase in Phase if phase is not Phase.OUTSIDE}
    assert phases == {
        Phase.WAITING: [], Phase.FETCHING: [], Phase.RUNNING: [running], Phase.LEAVING: [leaving],
        Phase.HELD: [], Phase.ABANDONED: [gone],
    }  # fmt: skip
    assert all(one.remove(each) for each in generations) and one.is_empty
    assert not one.remove(gone)
    assert one.find_faults() == []


def test_faults_of_a_running_generation_are_named():
    one = roster()
    running = generation(5)
    one.submit(running)
    admit_all(one)
    running.num_computed = 9
    assert one.find_faults() == ["9 of 5 tokens of a running one are computed", "9 tokens are computed in 2 blocks"]


def test_a_prefix_is_shared_but_its_last_token_is_computed():
    shared = roster()
    first, second = generation(8), generation(8)
    shared.submit(first)
    admit_all(shared)
    (chunk,) = shared.plan(100)
    named = shared.advance(chunk)
    assert [block.block_id for block in named] == first.block_ids
    shared.submit(second)
    admit_all(shared)
    assert second.block_ids[:1] == first.block_ids[:1]
    assert second.block_ids[1] != first.block_ids[1]
    assert (second.num_computed, second.num_cached) == (4, 4)
    assert shared.remove(first) and shared.remove(second)
    assert shared.find_faults() == []
    assert shared.pool.num_free == 8


def test_the_youngest_goes_back_to_wait_and_keeps_its_turn():
    tight = roster(num_blocks=4)
    old, young = generation(8), generation(4, first=100)
    for each in (old, young):
        tight.submit(each)
        admit_all(tight)
    for chunk in tight.plan(100):
        tight.advance(chunk)
    late = generation(4, first=200)
    tight.submit(late)
    old.append(500)
    young.append(501)  # old takes the last free block
    assert [chunk.generation for chunk in tight.plan(100)] == [old]
    assert list(tight.of(Phase.WAITING)) == [young, late]
    assert tight.take_num_preempted() == 1
    assert young.token_ids[-1] == 501 and young.num_computed == 0
    assert tight.find_faults() == []


def test_a_generation_ends_at_stop_or_length():
    ending = generation(5, max_tokens=7)
    assert ending.append(3) is None
    assert ending.append(999).name == "STOP"
    longest = generation(5, max_tokens=6)
    assert longest.append(3).name == "LENGTH"
    # The sampler bans a stop token before min_new_tokens, except after a complete answer, which it ends.
    complete = generation(5, max_tokens=10, min_new_tokens=3)
    assert complete.append(999).name == "STOP"


class RosterMachine(RuleBasedStateMachine):
    """Requests of all lengths come and go through a pool that is always too small; nothing is lost."""

    def __init__(self):
        super().__init__()
        self.roster = roster(num_blocks=6, max_running=4, max_waiting=5)
        self.alive: list[Generation] = []
        self.token = 1000

    @precondition(lambda self: len(self.roster.of(Phase.WAITING)) < 5)
    @rule(num_tokens=st.integers(1, 20), first=st.sampled_from([0, 0, 100]))
    def submit(self, num_tokens, first):
        new = generation(num_tokens, first=first, max_tokens=24)
        self.roster.submit(new)
        self.alive.append(new)

    @rule(num_fetched=st.integers(0, 3), tail=st.booleans())
    def admit(self, num_fetched, tail):
        for admitted in self.roster.admit():
            findable = (len(admitted.token_ids) - 1) // BLOCK_TOKENS - admitted.num_computed // BLOCK_TOKENS
            admitted.tail_tokens = len(admitted.token_ids) - 1
            self.roster.start(admitted, min(num_fetched, findable), tail and num_fetched >= findable)

    @rule(step_tokens=st.integers(1, 16))
    def step(self, step_tokens):
        before = set(self.roster.of(Phase.RUNNING))
        plan = self.roster.plan(step_tokens)
        running, waiting = set(self.roster.of(Phase.RUNNING)), set(self.roster.of(Phase.WAITING))
        assert bool(plan) == bool(running)
        assert before == running | (before & waiting)
        for chunk in plan:
            last = chunk.is_last
            self.roster.advance(chunk)
            if last:
                self.token += 1
                if chunk.generation.append(self.token):
                    self.roster.remove(chunk.generation)
                    self.alive.remove(chunk.generation)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data):
        gone = self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1)))
        assert self.roster.remove(gone)

    @invariant()
    def consistent(self):
        assert self.roster.find_faults() == []
        assert set(self.roster.everyone()) == set(self.alive)
        places = [(g.due, g.arrival) for g in self.roster.of(Phase.WAITING)]
        assert places == sorted(places)
        assert all(g in self.roster.of(g.phase) for g in self.alive)

    def teardown(self):
        for _ in range(1000):  # whatever happened, everyone ends
            if not self.alive:
                break
            self.admit(0, False)
            self.step(8)
        assert self.alive == []
        assert self.roster.pool.num_free == 6


TestRosterMachine = RosterMachine.TestCase
TestRosterMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
