"""Log-probabilities beside the text that they belong to."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from gateway.request.chat_model import TokenLogprob
from protos.attention_pb2 import TokenLogprobs
from services.runtime.errors import WireError

TokenBytes = Callable[[Iterable[int]], Awaitable[Mapping[int, bytes]]]
"""The bytes of at least the tokens asked for."""


class TokenLog:
    """The content tokens of one choice, held until the text that they begin is shown.

    The parser holds text back, for half a character or half a stop string; what it never shows isn't logged.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # (bytes of content before it, the token)
        self._num_bytes = 0
        self._num_shown_bytes = 0

    async def add(
        self,
        positions: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs],
        token_bytes: TokenBytes,
    ) -> None:
        """Tokens at these positions of the answer are content."""
        if not positions:
            return
        if positions[-1] >= len(logprobs):
            raise WireError("an engine sent tokens without their log-probabilities")
        named = {token_ids[position] for position in positions}
        named.update(token_id for position in positions for token_id in logprobs[position].top_token_ids)
        texts = await token_bytes(named)
        for position in positions:
            entry = logprobs[position]
            top = zip(entry.top_token_ids, entry.top_logprobs, strict=True)
            token = TokenLogprob(
                texts[token_ids[position]],
                entry.logprob,
                tuple((texts[token_id], logprob) for token_id, logprob in top),
            )
            self._waiting.append((self._num_bytes, token))
            self._num_bytes += len(token.token)

    def shown(self, text: str) -> tuple[TokenLogprob, ...]:
        """The tokens that begin in this text, which follows what was shown before."""
        self._num_shown_bytes += len(text.encode())
        begun: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][0] < self._num_shown_bytes:
            begun.append(self._waiting.popleft()[1])
        return tuple(begun)

    def rest(self) -> tuple[TokenLogprob, ...]:
        """The tokens that are left when an answer ends by itself."""
        return tuple(token for _, token in self._waiting)
