"""Rules for the next tokens, made by worker threads while the engine computes the logits."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from services.attention.constraint import Constraint
from services.attention.metrics import GRAMMAR_WAIT_SECONDS
from services.attention.sampler import Rule
from services.runtime.errors import NumericError

T = TypeVar("T")

NUM_THREADS = 4


class Rules:
    """The workers of one engine. A constraint is with a worker from `begin` until its rule is awaited."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, "rules")

    def begin(self, constraints: Sequence[Constraint | None]) -> "asyncio.Future[list[Rule | NumericError | None]]":
        """Starts on the rules of the rows of a step; None for those without a constraint."""
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
        """What `begin` started, once it is there."""
        if rules.done():
            return rules.result()
        with GRAMMAR_WAIT_SECONDS.time():
            return await rules


def _done(loop: asyncio.AbstractEventLoop, result: T) -> "asyncio.Future[T]":
    future: asyncio.Future[T] = loop.create_future()
    future.set_result(result)
    return future


def _make(constraint: Constraint) -> Rule | NumericError:
    try:
        return constraint.rule()
    except NumericError as error:
        return error
