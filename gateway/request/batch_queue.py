"""A queue between one producer and one consumer that takes everything that has piled up at once."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BatchQueue(Generic[T]):
    """Items in order, then an end or an error. `bound` items at most lie in it; put waits for room.

    Taking all that is there keeps a slow consumer from being woken once per item.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._items: deque[T] = deque()
        self._closed = False
        self._error: BaseException | None = None
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, item: T) -> None:
        """Appends an item; waits while the feed is full."""
        while len(self._items) >= self._bound:
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._filled.set()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more comes. With an error, the consumer gets it after the items before it."""
        if not self._closed:
            self._closed = True
            self._error = error
            self._filled.set()

    async def wait(self, timeout_s: float) -> bool:
        """Whether there is something to take, items or the end, within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._filled.wait()
        except TimeoutError:
            return False
        return True

    def check(self) -> None:
        """Raises the error that the feed was closed with, if it comes next."""
        if not self._items and self._error is not None:
            raise self._error

    async def take(self) -> list[T]:
        """All items that are there, at least one; an empty list once the feed has ended.

        Raises the error that the feed was closed with.
        """
        await self._filled.wait()
        items = list(self._items)
        self._items.clear()
        self._room.set()
        if items:
            if not self._closed:
                self._filled.clear()
            return items
        self.check()
        return []
