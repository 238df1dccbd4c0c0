"""The order in which prompts are computed, and what goes into a step."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from services.attention.engine.generation import Generation

# A prompt with at most so many steps of work left shares every step with the prompt whose turn it is.
SHORT_STEPS = 4
# Generated tokens that are computed again attend one by one, at several times the cost of a prompt's tokens.
RECOMPUTED_SHARE = 4


@dataclass(frozen=True)
class Chunk:
    """The next `num_tokens` uncomputed tokens of a generation, and a draft of what follows, as part of a step."""

    generation: Generation
    num_tokens: int
    draft: Sequence[int] = ()  # tokens that are verified after them

    @property
    def is_last(self) -> bool:
        """Whether the logits after this chunk give a new token."""
        return self.num_tokens == self.generation.num_remaining


class Turns:
    """Weighted fair queueing of prompts, in tokens of work.

    A prompt is due when the clock has gone on by its own work. So a short prompt overtakes a long one, but only until
    the long one has waited for as much work as it has itself. Work weighs as many times as its tenant has prompts
    here, so the tenants share the steps evenly, whatever number of prompts each has.
    """

    def __init__(self) -> None:
        self._clock = 0.0
        self._num_prompts: Counter[str] = Counter()

    def enter(self, generation: Generation) -> None:
        """Give a prompt its place; one that comes back keeps the place that it had."""
        self._num_prompts[generation.tenant] += 1
        generation.weight = self._num_prompts[generation.tenant]
        if not generation.due:
            generation.due = self._due(generation)

    def move_up(self, generation: Generation) -> None:
        """Move a prompt forward, because the store had a part of it."""
        generation.due = min(generation.due, self._due(generation))

    def count(self, generation: Generation) -> None:
        """Advance the clock, since a part of this prompt was computed."""
        self._clock = max(self._clock, generation.due - generation.num_remaining * generation.weight)

    def leave(self, generation: Generation) -> None:
        """Take a prompt out of the order: it is computed, or over."""
        if generation.weight:
            self._num_prompts[generation.tenant] -= 1
            if not self._num_prompts[generation.tenant]:
                del self._num_prompts[generation.tenant]
            generation.weight = 0

    def _due(self, generation: Generation) -> float:
        return self._clock + generation.num_remaining * generation.weight


def plan_step(running: Sequence[Generation], step_tokens: int) -> list[Chunk]:
    """Return what goes into the next step: every stream's token first, then tokens of prompts as far as there is room.

    Half of the room is for the prompt that is due first, the other half for short ones, those with the least work
    first. What they leave goes to the next in order; never to several long ones at once, since each chunk of a long
    prompt costs a projection of its whole context.
    """
    plan = [Chunk(generation, 1) for generation in running if generation.is_stream]
    room = step_tokens - len(plan)
    prompts = sorted((g for g in running if not g.is_stream), key=lambda g: (g.due, g.arrival))
    if not prompts or room <= 0:
        return plan
    first, *others = prompts
    short = [g for g in others if g.num_remaining <= SHORT_STEPS * step_tokens]
    kept = min(_most(first, step_tokens), -(-room // 2))
    room -= kept
    chunks = []
    for generation in sorted(short, key=lambda g: (g.num_remaining, g.due)):
        if room > 0:
            chunks.append(Chunk(generation, min(_most(generation, step_tokens), room)))
            room -= chunks[-1].num_tokens
    more = min(_most(first, step_tokens) - kept, room)
    chunks.insert(0, Chunk(first, kept + more))
    rest = next((g for g in others if g.num_remaining > SHORT_STEPS * step_tokens), None)
    if rest is not None and room > more:
        chunks.append(Chunk(rest, min(_most(rest, step_tokens), room - more)))
    return plan + chunks


def _most(generation: Generation, step_tokens: int) -> int:
    if generation.is_past_prompt:
        return min(generation.num_next, max(1, step_tokens // RECOMPUTED_SHARE))
    return generation.num_next
