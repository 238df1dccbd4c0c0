"""Spans of an engine: the phases of a generation, and every dispatch of some steps."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from services.attention.engine.generation import Generation
from services.attention.engine.turns import Chunk
from services.attention.experts.experts import Experts
from services.runtime.tracing import Tracer, is_recorded


def record_phases(tracer: Tracer, generation: Generation) -> None:
    """Record the phases that an ended generation reached: queue, fetch, prefill, publish or decode."""
    parent, at, now_s = generation.trace_parent, generation.milestones, time.monotonic()
    last = ("publish" if generation.hand_over else "decode", at.first_token_s, now_s)
    phases = [
        ("queue", at.arrived_s, at.admitted_s),
        ("fetch", at.admitted_s, at.started_s),
        ("prefill", at.started_s, at.first_token_s),
    ]
    tokens = {
        "moonshard.num_prompt_tokens": generation.num_prompt,
        "moonshard.num_cached_tokens": generation.num_cached or 0,
        "moonshard.num_new_tokens": generation.num_new,
    }
    for name, began_s, ended_s in [*phases, last]:
        if not began_s:
            return
        tracer.record(name, parent, began_s, ended_s or now_s, tokens)


class StepSpans:
    """Records some of the steps of recorded requests: a span for the step, and under it one for every frame.

    A step serves many requests; its span belongs to the first of those whose trace is recorded. Owned by the engine.

    ratio  of such steps, 0 to 1
    """

    def __init__(self, tracer: Tracer, experts: Experts, ratio: float) -> None:
        self._tracer = tracer
        self._experts = experts
        self._ratio = ratio

    @contextmanager
    def step(self, step: int, plan: Sequence[Chunk]) -> Iterator[None]:
        """Record the forward pass of a step, if chance takes it."""
        parent = next((c.generation.trace_parent for c in plan if is_recorded(c.generation.trace_parent)), "")
        if not parent or random.random() >= self._ratio:
            yield
            return
        size = {
            "moonshard.step": step,
            "moonshard.num_generations": len(plan),
            "moonshard.num_tokens": sum(chunk.num_tokens for chunk in plan),
        }
        with self._tracer.span("step", parent, size) as span:
            self._experts.trace(self._tracer, span.trace_parent)
            try:
                yield
            finally:
                self._experts.trace(None, "")
