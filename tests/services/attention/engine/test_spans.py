"""What reaches a collector of the phases of a generation and of its steps."""

import time

import pytest

from services.attention.engine.spans import StepSpans, record_phases
from services.attention.engine.turns import Chunk
from services.runtime.tracing import open_tracer
from tests.services.attention.engine.test_roster import generation
from tests.services.runtime.collector import Collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
RECORDED, NOT_RECORDED = (f"00-{TRACE}-b7ad6b7169203331-{flags}" for flags in ("01", "00"))


class Experts:
    """Notes under which span its answers are to be recorded."""

    def __init__(self):
        self.parents = []

    def trace(self, tracer, parent):
        assert (tracer is None) == (not parent)
        self.parents.append(parent)


async def spans_of(work):
    """The spans that arrive when `work` has used a tracer."""
    with Collector() as collector:
        tracer = open_tracer(collector.url, "attention", "decode-0")
        work(tracer)
        await tracer.close()
        return {span.name: span for span in collector.spans}


@pytest.mark.parametrize(
    "reached, hand_over, names",
    [
        (0, False, {"queue"}),
        (1, False, {"queue", "fetch"}),
        (2, False, {"queue", "fetch", "prefill"}),
        (3, False, {"queue", "fetch", "prefill", "decode"}),
        (3, True, {"queue", "fetch", "prefill", "publish"}),
    ],
)
@pytest.mark.slow
async def test_the_phases_that_were_reached_are_recorded(reached, hand_over, names):
    ended = generation(5)
    ended.trace_parent, ended.hand_over, ended.num_cached = RECORDED, hand_over, 4
    now_s, at = time.monotonic(), ended.milestones
    at.arrived_s = now_s - 4
    for place, name in enumerate(["admitted_s", "started_s", "first_token_s"][:reached]):
        setattr(at, name, now_s - 3 + place)
    spans = await spans_of(lambda tracer: record_phases(tracer, ended))
    assert set(spans) == names
    assert {span.trace_id for span in spans.values()} == {TRACE}
    assert spans["queue"].attributes["moonshard.num_cached_tokens"] == 4
    if reached:
        assert (spans["queue"].ended_ns - spans["queue"].began_ns) / 1e9 == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    "parents, ratio, is_there",
    [
        ((RECORDED,), 1.0, True),
        ((NOT_RECORDED, RECORDED), 1.0, True),
        ((NOT_RECORDED,), 1.0, False),
        ((RECORDED,), 0.0, False),
    ],
)
@pytest.mark.slow
async def test_a_step_belongs_to_the_first_request_that_is_recorded(parents, ratio, is_there):
    plan = [Chunk(generation(5, first=10 * place), 5) for place in range(len(parents))]
    for chunk, parent in zip(plan, parents, strict=True):
        chunk.generation.trace_parent = parent
    experts = Experts()

    def step(tracer):
        with pytest.raises(ZeroDivisionError), StepSpans(tracer, experts, ratio).step(7, plan):
            raise ZeroDivisionError

    spans = await spans_of(step)
    assert bool(spans) == bool(experts.parents) == is_there
    if is_there:
        size = {
            name: spans["step"].attributes[f"moonshard.{name}"] for name in ("step", "num_generations", "num_tokens")
        }
        assert size == {"step": 7, "num_generations": len(plan), "num_tokens": 5 * len(plan)}
        assert spans["step"].span_id in experts.parents[0] and experts.parents[1] == ""
