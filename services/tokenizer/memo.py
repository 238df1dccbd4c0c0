"""Results of work on texts, remembered within a bound of bytes."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

ENTRY_BYTES = 1024  # of objects around a text and what was made of it
TEXT_COPIES = 3  # a text and its tokens take so many times the text's own memory


class Memo(Generic[T]):
    """Remembers what a pure function made of a text; the text that was used longest ago is forgotten first.

    Safe to share between threads: two that miss the same text at once both do the work.

    max_bytes  of all that is remembered, by the estimate of `_cost`
    """

    def __init__(self, make: Callable[[str], T], max_bytes: int) -> None:
        self._make = make
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._made: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, text: str) -> T:
        with self._lock:
            if text in self._made:
                self._made.move_to_end(text)
                return self._made[text]
        made = self._make(text)
        if _cost(text) <= self._max_bytes:
            with self._lock:
                self._remember(text, made)
        return made

    def _remember(self, text: str, made: T) -> None:
        if text not in self._made:
            self._num_bytes += _cost(text)
        self._made[text] = made
        while self._num_bytes > self._max_bytes:
            forgotten, _ = self._made.popitem(last=False)
            self._num_bytes -= _cost(forgotten)


def _cost(text: str) -> int:
    return ENTRY_BYTES + TEXT_COPIES * sys.getsizeof(text)
