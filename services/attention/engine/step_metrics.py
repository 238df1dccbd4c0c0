"""What a step of the engine adds to the metrics."""

from collections.abc import Sequence

from services.attention.engine.roster import Chunk, Roster
from services.attention.metrics import (
    BLOCKS,
    GENERATIONS,
    PREEMPTIONS,
    STEP_GENERATIONS,
    STEP_SECONDS,
    STEP_TOKENS,
    TOKENS,
)


def count_step(role: str, plan: Sequence[Chunk], num_sampled: int, seconds: float) -> None:
    """One step that was carried out, in which so many generations got a token."""
    num_prompt = sum(chunk.num_tokens for chunk in plan) - num_sampled
    STEP_TOKENS.labels("prompt").observe(num_prompt)
    STEP_TOKENS.labels("decode").observe(num_sampled)
    STEP_GENERATIONS.labels(role).observe(len(plan))
    TOKENS.labels("prompt").inc(num_prompt)
    TOKENS.labels("generated").inc(num_sampled)
    STEP_SECONDS.labels(role).observe(seconds)


def show_roster(roster: Roster) -> None:
    """Who is where, and the blocks."""
    PREEMPTIONS.inc(roster.take_num_preempted())
    phases = {
        "waiting": roster.waiting,
        "fetching": roster.fetching,
        "running": roster.running,
        "leaving": roster.leaving,
    }
    for phase, generations in phases.items():
        GENERATIONS.labels(phase).set(len(generations))
    BLOCKS.labels("free").set(roster.pool.num_free)
    BLOCKS.labels("used").set(roster.pool.num_blocks - roster.pool.num_free)
    BLOCKS.labels("remembered").set(roster.pool.num_remembered)
