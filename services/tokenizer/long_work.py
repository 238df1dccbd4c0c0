"""Work that would block the event loop, and so every stream."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from services.runtime.errors import Overloaded

# About a millisecond of encoding.
SHORT_BYTES: Final = 8192

Result = TypeVar("Result")


class LongWork:
    """Do short work at once and long work in a few threads, with bounds on the queue.

    The encoder releases the interpreter lock, so the event loop goes on meanwhile. Owns its threads: `close` it.

    max_waiting        pieces of long work, the running ones included
    max_waiting_bytes  of all of them together; a piece takes several times its bytes in memory
    """

    def __init__(self, threads: int, max_waiting: int, max_waiting_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="long-work")
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._waiting_bytes = 0

    async def run(self, size_bytes: int, work: Callable[[], Result]) -> Result:
        """Return the result of the work. Raises Overloaded if too much is queued."""
        if size_bytes <= SHORT_BYTES:
            return work()
        with self._lock:
            fits = self._waiting_bytes + size_bytes <= self._max_waiting_bytes or not self._num_waiting
            if self._num_waiting >= self._max_waiting or not fits:
                raise Overloaded(
                    f"{self._num_waiting} long texts of {self._waiting_bytes} bytes are being encoded or queued",
                    retry_after_s=1,
                )
            self._num_waiting += 1
            self._waiting_bytes += size_bytes

        def give_back(_: Future[Any]) -> None:
            with self._lock:
                self._num_waiting -= 1
                self._waiting_bytes -= size_bytes

        future = self._pool.submit(work)
        # Given back when the thread is done: a caller that leaves does not end running work.
        future.add_done_callback(give_back)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads: running work is finished, queued work is dropped."""
        self._pool.shutdown(cancel_futures=True)
