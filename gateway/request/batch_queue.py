"""A bounded queue from one producer to one consumer, which takes all waiting items at once."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

from services.runtime.lanes.wakeup import Wakeup

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """Items in order, then an end or an error. `bound` items at most lie in it; put waits for room.

    The consumer takes all items at once. So a slow consumer is woken once for many items.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._items: deque[T] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._wakeup = Wakeup()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, item: T) -> None:
        """Append an item; waits while the queue is full."""
        while len(self._items) >= self._bound:
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._wakeup.wake()

    def close(self, error: BaseException | None = None) -> None:
        """End the queue. The consumer gets the error, if there is one, after the items before it."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._wakeup.wake()

    async def wait(self, timeout_s: float) -> bool:
        """Return whether there is something to take, items or the end, within the time."""
        return bool(self._items) or self._closed or await self._wakeup.wait(timeout_s)

    def check(self) -> None:
        """Raise the error that the queue was closed with, if it comes next."""
        if not self._items and self._error is not None:
            raise self._error

    async def take(self) -> list[T]:
        """Return all waiting items, at least one; an empty list once the queue has ended.

        Raises the error that the queue was closed with.
        """
        if not (self._items or self._closed):
            await self._wakeup.wait()
        if self._items:
            items = list(self._items)
            self._items.clear()
            self._room.set()
            return items
        self.check()
        return []
