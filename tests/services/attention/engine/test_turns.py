"""Who computes when: streams, long and short prompts, tenants."""

import itertools

import pytest

from services.attention.engine.generation import Generation
from services.attention.engine.pool import BlockPool
from services.attention.engine.roster import Roster
from services.attention.engine.turns import plan_step
from services.attention.sampling.on_host import SamplingParams
from services.checkpoint.block_names import BlockNames

BLOCK_TOKENS = 64
STEP_TOKENS = 512
COUNT = itertools.count()  # a root of its own for each, so that no two share a block


def generation(num_prompt, num_generated=0, *, num_computed=0, due=0.0, tenant=""):
    num_tokens = num_prompt + num_generated
    made = Generation(
        request_id="test",
        token_ids=[0] * num_tokens,
        num_prompt=num_prompt,
        sampling=SamplingParams(temperature=0.0),
        max_tokens=10 * num_tokens,
        names=BlockNames(b"%d" % next(COUNT), BLOCK_TOKENS, num_prompt=num_prompt),
        sink=lambda event: None,
        num_computed=num_computed,
        tenant=tenant,
    )
    made.due = due
    return made


def stream():
    return generation(20, 1, num_computed=20)


def prompts(*lengths):
    """Prompts that are due in this order."""
    return [generation(length, due=float(place)) for place, length in enumerate(lengths)]


@pytest.mark.parametrize(
    "running, step_tokens, planned",
    [
        pytest.param([], 8, [], id="idle"),
        pytest.param(prompts(6), 8, [6], id="alone-and-whole"),
        pytest.param(prompts(9), 8, [8], id="alone-in-chunks"),
        pytest.param([*prompts(9), stream()], 8, [1, 7], id="streams-go-first"),
        pytest.param([stream(), stream(), stream(), *prompts(5)], 2, [1, 1, 1], id="streams-are-never-left-out"),
        pytest.param(prompts(100, 3), 8, [5, 3], id="a-short-one-beside-a-long-one"),
        pytest.param(prompts(100, 30, 5), 8, [4, 4], id="the-shortest-first"),
        pytest.param(prompts(100, 30, 2), 8, [4, 2, 2], id="then-the-next"),
        pytest.param(prompts(100, 200, 300), 8, [8], id="one-long-one-at-a-time"),
        pytest.param(prompts(3, 200), 8, [3, 5], id="a-long-one-takes-what-is-left"),
        pytest.param(prompts(3, 2, 200, 300), 8, [3, 2, 3], id="one-long-one-takes-what-is-left"),
        pytest.param([generation(20, 30, num_computed=20)], 32, [8], id="generated-again-in-small-chunks"),
        pytest.param([generation(20, 30, num_computed=15)], 32, [5], id="a-chunk-ends-with-the-prompt"),
        pytest.param([generation(1)], 8, [1], id="one-token"),
    ],
)
def test_step_plan(running, step_tokens, planned):
    assert [chunk.num_tokens for chunk in plan_step(running, step_tokens)] == planned


class Replica:
    """A roster whose steps cost nothing; counts them."""

    def __init__(self):
        self.roster = Roster(BlockPool(4096), BLOCK_TOKENS, max_running=64, max_waiting=256)
        self.num_steps = 0

    def submit(self, new):
        self.roster.submit(new)
        for admitted in self.roster.admit():
            self.roster.start(admitted, 0, False)
        return new

    def step(self):
        """Return the prompts whose first token this step gave; those end with it."""
        plan = self.roster.plan(STEP_TOKENS)
        assert sum(chunk.num_tokens for chunk in plan) <= max(STEP_TOKENS, len(plan))
        self.num_steps += 1
        done = [chunk.generation for chunk in plan if chunk.is_last]
        for chunk in plan:
            self.roster.advance(chunk)
        for each in done:
            self.roster.remove(each)
        return done

    def steps_until_first_token(self, wanted):
        before = self.num_steps
        while wanted not in self.step():
            pass
        return self.num_steps - before


@pytest.mark.parametrize("num_steps_before", [0, 1, 40, 83])
def test_a_short_prompt_beside_one_of_43_000_tokens_waits_two_steps(num_steps_before):
    """Alone it takes one; first come, first served would take up to 85."""
    replica = Replica()
    replica.submit(generation(43_000))
    for _ in range(num_steps_before):
        replica.step()
    assert replica.steps_until_first_token(replica.submit(generation(440))) <= 2


def test_a_long_prompt_beside_endless_short_ones_is_computed_too():
    """They overtake it with as much work as it has itself, 84 steps; from then on it gets half of every step."""
    replica = Replica()
    long = replica.submit(generation(43_000))
    while True:
        while len(replica.roster.everyone()) < 20:
            replica.submit(generation(200))
        if long in replica.step():
            break
    assert replica.num_steps <= 84 + 2 * 84 + 1


def test_a_tenant_with_one_prompt_does_not_wait_for_another_with_thirty():
    """Each gets half of the steps; in the order of arrival, 300 steps would come before."""
    replica = Replica()
    flood = [replica.submit(generation(5_120, tenant="flood")) for _ in range(30)]
    replica.step()
    single = replica.submit(generation(5_120, tenant="single"))
    assert replica.steps_until_first_token(single) <= 21
    assert sum(not g.num_remaining for g in flood) <= 2


def test_a_prompt_is_overtaken_by_as_much_work_as_it_has():
    """Prompts that are too long to count as short, one tenant: the clock goes on by the work that is done."""
    replica = Replica()
    long = replica.submit(generation(20_480))
    replica.submit(generation(4_096))
    while long not in replica.step():
        if len(replica.roster.everyone()) < 3:
            replica.submit(generation(4_096))
    assert replica.num_steps <= 3 * 40


def test_what_the_store_had_is_no_work():
    replica = Replica()
    replica.submit(generation(43_000))
    late = generation(40_000)
    replica.roster.submit(late)
    (admitted,) = replica.roster.admit()
    before = admitted.due
    replica.roster.start(admitted, 600, False)
    assert admitted.due < before / 20
