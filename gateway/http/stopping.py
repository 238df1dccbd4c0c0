"""The end of the process, for requests that are still open when the drain is over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.runtime.errors import Unavailable

RETRY_S = 1.0  # other gateways serve at once


class Stopping:
    """Ends the work of open requests with Unavailable, so that each client gets an error of its dialect."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_over = False

    def stop(self) -> None:
        """End all work that is open, and all that would begin."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """Run the block until `stop`, which makes it raise Unavailable."""
        task = asyncio.current_task()
        assert task is not None
        if self._is_over:
            raise _stopped()
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            # As asyncio.timeout does: only our own cancellation becomes an error.
            if self._is_over and task.uncancel() == 0:
                raise _stopped() from None
            raise
        finally:
            self._tasks.discard(task)


def _stopped() -> Unavailable:
    return Unavailable("the server stops; send the request again", retry_after_s=RETRY_S)
