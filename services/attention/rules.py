"""Rules for the next tokens, made by worker threads while the engine computes the logits."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from services.attention.constraint import Constraint
from services.attention.sampler import Rule
from services.runtime.errors import NumericError

NUM_THREADS = 4


class Rules:
    """The workers of one engine. A constraint is with a worker from `begin` until its rule is awaited."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, "rules")

    def begin(self, constraints: Sequence[Constraint | None]) -> "asyncio.Future[list[Rule | NumericError | None]]":
        """Starts on the rules of the rows of a step; None for those without a constraint."""
        loop = asyncio.get_running_loop()
        return asyncio.gather(
            *(
                _nothing(loop) if constraint is None else loop.run_in_executor(self._pool, _make, constraint)
                for constraint in constraints
            )
        )


def _nothing(loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
    future = loop.create_future()
    future.set_result(None)
    return future


def _make(constraint: Constraint) -> Rule | NumericError:
    try:
        return constraint.rule()
    except NumericError as error:
        return error
