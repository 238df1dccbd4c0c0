"""Log-probabilities beside the text that they belong to."""

from collections import deque
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence

from gateway.request.answer_model import PromptToken, TokenLogprob
from protos.attention_pb2 import TokenLogprobs
from services.runtime.errors import WireError

TokenBytes = Callable[[Iterable[int]], Awaitable[Mapping[int, bytes]]]
"""The bytes of at least the tokens asked for."""


class TokenLog:
    """The content tokens of one choice, kept until the text that they begin is shown.

    The parser keeps text back, for half a character or half a stop string. Of a chat, text that is never shown is not
    logged; of a raw answer every token is, so that there are as many as the usage counts.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # (bytes of content before it, the token)
        self.num_tokens = 0
        self._num_bytes = 0
        self._num_shown_bytes = 0

    async def add(
        self,
        positions: Sequence[int],
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs],
        token_bytes: TokenBytes,
        hidden: Container[int] = (),
    ) -> None:
        """Log the tokens at these positions of the answer; those at `hidden` positions show no text."""
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
                hidden=position in hidden,
            )
            self._waiting.append((self._num_bytes, token))
            self.num_tokens += 1
            self._num_bytes += 0 if token.hidden else len(token.token)

    def shown(self, text: str) -> tuple[TokenLogprob, ...]:
        """Take the tokens that begin in this text, which follows what was shown before."""
        self._num_shown_bytes += len(text.encode())
        begun: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][0] < self._num_shown_bytes:
            begun.append(self._waiting.popleft()[1])
        return tuple(begun)

    def rest(self) -> tuple[TokenLogprob, ...]:
        """Return the tokens that are left when an answer ends by itself."""
        return tuple(token for _, token in self._waiting)


async def prompt_tokens(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], token_bytes: TokenBytes
) -> tuple[PromptToken, ...]:
    """Return the tokens of a prompt with their log-probabilities; `logprobs` has none of the first token."""
    if len(logprobs) != len(token_ids) - 1:
        raise WireError(f"an engine sent {len(logprobs)} log-probabilities of {len(token_ids)} prompt tokens")
    texts = await token_bytes({*token_ids, *(token_id for one in logprobs for token_id in one.top_token_ids)})
    tokens = [PromptToken(token_ids[0], texts[token_ids[0]])]
    for token_id, entry in zip(token_ids[1:], logprobs, strict=True):
        top = zip(entry.top_token_ids, entry.top_logprobs, strict=True)
        alternatives = tuple((other, texts[other], logprob) for other, logprob in top)
        tokens.append(PromptToken(token_id, texts[token_id], entry.logprob, alternatives))
    return tuple(tokens)
