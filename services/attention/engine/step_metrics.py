"""The metrics of the engine's steps."""

from collections.abc import Sequence

from services.attention.engine.generation import Phase
from services.attention.engine.roster import Roster
from services.attention.engine.turns import Chunk
from services.attention.metrics import (
    BLOCKS,
    GENERATIONS,
    PREEMPTIONS,
    STEP_GENERATIONS,
    STEP_SECONDS,
    STEP_TOKENS,
    TOKENS,
)


def count_step(role: str, plan: Sequence[Chunk], num_sampled: int, num_generated: int, seconds: float) -> None:
    """Count one step, in which `num_sampled` generations got `num_generated` tokens."""
    num_prompt = sum(chunk.num_tokens for chunk in plan) - num_sampled
    STEP_TOKENS.labels("prompt").observe(num_prompt)
    STEP_TOKENS.labels("decode").observe(num_generated)
    STEP_GENERATIONS.labels(role).observe(len(plan))
    TOKENS.labels("prompt").inc(num_prompt)
    TOKENS.labels("generated").inc(num_generated)
    STEP_SECONDS.labels(role).observe(seconds)


def show_roster(roster: Roster) -> None:
    """Show the generations by phase, and the blocks."""
    PREEMPTIONS.inc(roster.take_num_preempted())
    for phase in Phase:
        if phase is not Phase.OUTSIDE:
            GENERATIONS.labels(phase.value).set(len(roster.of(phase)))
    BLOCKS.labels("free").set(roster.pool.num_free)
    BLOCKS.labels("used").set(roster.pool.num_blocks - roster.pool.num_free)
    BLOCKS.labels("remembered").set(roster.pool.num_remembered)
