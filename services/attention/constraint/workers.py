"""Worker threads make the rules of a step while the engine computes its logits, and settle drawn tokens after it."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from services.attention.constraint.restrictions import Follower
from services.attention.metrics import GRAMMAR_WAIT_SECONDS
from services.attention.sampling.on_device import sample_on_device
from services.attention.sampling.on_host import History, Rule, SampledToken, SamplingParams, sample_row
from services.runtime.errors import NumericError

T = TypeVar("T")

NUM_THREADS = 4


class Rules:
    """The workers of one engine. A constraint is with a worker from `begin` until its rule is awaited."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, "rules")

    def begin(self, constraints: Sequence[Follower | None]) -> "asyncio.Future[list[Rule | NumericError | None]]":
        """Start on the rules of a step's rows; a row without a constraint gets None."""
        loop = asyncio.get_running_loop()
        if not any(constraints):
            return _done(loop, [None] * len(constraints))
        return asyncio.gather(
            *(
                _done(loop, None) if constraint is None else loop.run_in_executor(self._pool, _make, constraint)
                for constraint in constraints
            )
        )

    async def finish(
        self, rules: "asyncio.Future[list[Rule | NumericError | None]]"
    ) -> list[Rule | NumericError | None]:
        """Wait for the rules that `begin` started."""
        if rules.done():
            return rules.result()
        with GRAMMAR_WAIT_SECONDS.time():
            return await rules

    async def sample(
        self,
        logits: Tensor,
        params: Sequence[SamplingParams],
        positions: Sequence[int],
        histories: Sequence[History | None],
        rules: Sequence[Rule | NumericError | None],
    ) -> list[SampledToken | NumericError]:
        """Draw a token for every row, on the device that holds the logits.

        On the host the workers draw where a token must be settled, because that may need a search.
        """
        if not logits.is_cpu:
            return sample_on_device(logits, params, positions, histories, rules)
        loop = asyncio.get_running_loop()
        rows = list(zip(logits.numpy(force=True), params, positions, histories, rules, strict=True))
        settles = [isinstance(rule, Rule) and rule.settle is not None for rule in rules]
        working = [
            loop.run_in_executor(self._pool, sample_row, *row)
            for row, by_worker in zip(rows, settles, strict=True)
            if by_worker
        ]
        own = iter([sample_row(*row) for row, by_worker in zip(rows, settles, strict=True) if not by_worker])
        settled = iter(await asyncio.gather(*working))
        return [next(settled if by_worker else own) for by_worker in settles]


def _done(loop: asyncio.AbstractEventLoop, result: T) -> "asyncio.Future[T]":
    future: asyncio.Future[T] = loop.create_future()
    future.set_result(result)
    return future


def _make(constraint: Follower) -> Rule | NumericError | None:
    try:
        return constraint.rule()
    except NumericError as error:
        return error
