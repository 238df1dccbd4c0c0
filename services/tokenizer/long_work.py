"""Work that would keep the event loop, and so every stream, waiting."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TypeVar

from services.runtime.errors import Overloaded

# About a millisecond of encoding.
SHORT_BYTES = 8192

Result = TypeVar("Result")


class LongWork:
    """Does short work at once and long work in a few threads, with a bound on what waits for them.

    The encoder releases the interpreter lock, so the event loop goes on meanwhile. Owns its threads: `close` it.
    """

    def __init__(self, threads: int, max_waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="long-work")
        self._max_waiting = max_waiting
        self._free = BoundedSemaphore(max_waiting)

    async def run(self, size_bytes: int, work: Callable[[], Result]) -> Result:
        """The result of the work; Overloaded if too much is waiting."""
        if size_bytes <= SHORT_BYTES:
            return work()
        if not self._free.acquire(blocking=False):
            raise Overloaded(f"{self._max_waiting} long texts are being encoded or wait for it", retry_after_s=1)
        future = self._pool.submit(work)
        # Given back by the thread: a caller that leaves does not end work that runs.
        future.add_done_callback(lambda _: self._free.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Ends the threads; work that runs is finished, work that waits is not begun."""
        self._pool.shutdown(cancel_futures=True)
