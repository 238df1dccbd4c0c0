"""The tokens that a step gives: one for each generation, and more where a draft proves right."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from torch import Tensor

from services.attention.constraint.workers import Rules
from services.attention.engine.generation import FinishReason
from services.attention.engine.turns import Chunk
from services.attention.sampling.on_host import Rule, SampledToken
from services.runtime.errors import MoonshardError, NumericError


@dataclass
class Drawn:
    """What one generation got; an error ends it after these tokens."""

    choices: list[SampledToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: MoonshardError | None = None


async def draw_tokens(
    rules: Rules,
    first_rules: "asyncio.Future[list[Rule | NumericError | None]]",
    chunks: Sequence[Chunk],
    logits: Tensor,
) -> list[Drawn]:
    """Draw and append tokens for every generation, as long as they are those that were drafted.

    first_rules  of the first token of each, from `rules.begin`
    logits       f32 [one row for each chunk and one for each drafted token, vocabulary]
    """
    drawn = [Drawn() for _ in chunks]
    starts = [0, *accumulate(1 + len(chunk.draft) for chunk in chunks)]
    going, place, begun = list(range(len(chunks))), 0, first_rules
    while going:
        generations = [chunks[index].generation for index in going]
        rows = logits if len(going) == len(logits) else logits[[starts[index] + place for index in going]]
        sampled = await rules.sample(
            rows,
            [one.sampling for one in generations],
            [len(one.token_ids) for one in generations],
            [one.history for one in generations],
            await rules.finish(begun),
        )
        for index, choice in zip(going, sampled, strict=True):
            _take(drawn[index], chunks[index], choice)
        going = [index for index in going if _is_right(drawn[index], chunks[index], place)]
        begun = rules.begin([chunks[index].generation.constraint for index in going])
        place += 1
    return drawn


def _take(drawn: Drawn, chunk: Chunk, choice: SampledToken | NumericError) -> None:
    if isinstance(choice, NumericError):
        drawn.error = choice
        return
    drawn.choices.append(choice)
    drawn.finish_reason = chunk.generation.append(choice.token_id)


def _is_right(drawn: Drawn, chunk: Chunk, place: int) -> bool:
    """Whether the token at this place was drafted, so that the logits after it are known.

    A token that stands for another one is the last of its step: so callers know which of the step's tokens it was.
    """
    if drawn.error is not None or drawn.finish_reason is not None or place >= len(chunk.draft):
        return False
    choice = drawn.choices[place]
    return choice.token_id == chunk.draft[place] and not choice.is_cut
