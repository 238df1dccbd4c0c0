"""Stop strings in text that arrives in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Find the stop string that is complete first, however the text is cut; of two, the one that began first.

    Text that may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._held = ""
        # Last characters of unfinished stop strings: most text ends otherwise and needs no search.
        self._inner_chars = frozenset("".join(stop[:-1] for stop in stops))

    def add(self, text: str) -> tuple[str, str | None]:
        """Return the text that can be shown now, and the stop string that ends it, if there is one."""
        if not self._stops:
            return text, None
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, stop = min(found)
            self._held = ""
            return text[: end if self._include else start], stop
        may_begin = text[-1:] in self._inner_chars
        num_held = max(_overlap(text, stop) for stop in self._stops) if may_begin else 0
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held], None

    def flush(self) -> str:
        """Return the text that was held back, since no more follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop`, but not all of it, that `text` ends with."""
    longest = min(len(stop) - 1, len(text))
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
