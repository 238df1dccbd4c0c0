"""Keys and values of running prompts, kept in bounded memory so that a chunk projects only its own tokens."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import torch

from kernels import ExpandedContext
from services.attention.layers.batch import Segment

# A prompt without a chunk in so many steps gives its memory to one that needs it: its client may be gone.
STALE_STEPS: Final = 64


class ExpandedPrompts:
    """Expanded contexts by prompt and layer.

    widths     numbers of a token in each layer: heads * (nope + v)
    num_bytes  most memory of all prompts; what does not fit is projected again for every chunk
    """

    def __init__(self, widths: Sequence[int], dtype: torch.dtype, num_bytes: int) -> None:
        self._widths = widths
        self._dtype = dtype
        self._free = self._most = num_bytes // (sum(widths) * dtype.itemsize)
        self._prompts: OrderedDict[int, _Prompt] = OrderedDict()  # the one that waited longest first
        self._clock = 0

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def num_tokens(self) -> int:
        """Tokens for which there is memory now."""
        return self._most - self._free

    def begin(self, segments: Sequence[Segment]) -> list[Sequence[ExpandedContext] | None]:
        """Return for each segment of a step its contexts by layer; None: nothing of it is kept."""
        self._clock += 1
        return [self._contexts(segment) for segment in segments]

    def end(self, segments: Sequence[Segment]) -> None:
        """Let go of the prompts that this step has completed."""
        for segment in segments:
            if segment.context_len >= segment.prompt_len:
                self._drop(segment.prompt)

    def clear(self) -> None:
        """Let go of everything."""
        for prompt in list(self._prompts):
            self._drop(prompt)

    def _contexts(self, segment: Segment) -> Sequence[ExpandedContext] | None:
        if segment.prompt not in self._prompts:
            # The chunk ends its prompt, so no later chunk would use what is kept.
            if not segment.prompt or segment.context_len >= segment.prompt_len:
                return None
            self._make_room(segment.prompt_len)
            capacity = min(segment.prompt_len, self._free)
            if not capacity:
                return None
            self._free -= capacity
            contexts = [ExpandedContext(capacity, width, self._dtype) for width in self._widths]
            self._prompts[segment.prompt] = _Prompt(contexts, capacity)
        self._prompts.move_to_end(segment.prompt)
        prompt = self._prompts[segment.prompt]
        prompt.used = self._clock
        return prompt.contexts

    def _make_room(self, num_tokens: int) -> None:
        for name, prompt in list(self._prompts.items()):
            if self._free >= num_tokens or self._clock - prompt.used < STALE_STEPS:
                return
            self._drop(name)

    def _drop(self, name: int) -> None:
        if (prompt := self._prompts.pop(name, None)) is not None:
            self._free += prompt.capacity


class _Prompt:
    def __init__(self, contexts: Sequence[ExpandedContext], capacity: int) -> None:
        self.contexts = contexts
        self.capacity = capacity
        self.used = 0  # the step of its last chunk
