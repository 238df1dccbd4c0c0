"""Log-probabilities as all OpenAI dialects write them."""

from collections.abc import Iterator, Sequence

from gateway.dialects.chat.answer_types import ContentLogprob, PromptLogprob, PromptLogprobs, TopLogprob
from gateway.request.answer_model import PromptToken, TokenLogprob

# JSON has no infinity; the APIs say -9999 for a token that cannot come.
NEVER_LOGPROB = -9999.0


def content_logprobs(tokens: Sequence[TokenLogprob]) -> list[ContentLogprob]:
    """Return the tokens of a text, each with those that might have come in its place."""
    return [
        {
            "token": text_of(token.token),
            "logprob": finite(token.logprob),
            "bytes": list(token.token),
            "top_logprobs": [_top(other, logprob) for other, logprob in token.top],
        }
        for token in tokens
    ]


def _top(token: bytes, logprob: float) -> TopLogprob:
    return {"token": text_of(token), "logprob": finite(logprob), "bytes": list(token)}


def prompt_logprobs(tokens: Sequence[PromptToken]) -> PromptLogprobs:
    """Return the tokens of a prompt in vLLM's form."""
    return [None if token.logprob is None else dict(_alternatives(token)) for token in tokens]


def _alternatives(token: PromptToken) -> Iterator[tuple[str, PromptLogprob]]:
    assert token.logprob is not None
    yield str(token.token_id), _ranked(token.token, token.logprob, None)
    for rank, (token_id, text, logprob) in enumerate(token.top, start=1):
        yield str(token_id), _ranked(text, logprob, rank)


def _ranked(token: bytes, logprob: float, rank: int | None) -> PromptLogprob:
    return {"logprob": finite(logprob), "rank": rank, "decoded_token": text_of(token)}


def text_of(token: bytes) -> str:
    """Return a token's text, with a sign in the place of a part of a character."""
    return token.decode(errors="replace")


def finite(logprob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return max(logprob, NEVER_LOGPROB)
