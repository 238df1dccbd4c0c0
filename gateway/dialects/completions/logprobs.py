"""Log-probabilities in the form of plain completions: parallel lists."""

import codecs
from collections.abc import Iterator, Sequence

from gateway.dialects.completions.answer_types import Logprobs
from gateway.dialects.logprobs import finite, text_of
from gateway.request.answer_model import PromptToken, TokenLogprob


class LogprobWriter:
    """Writes the log-probabilities of one choice. Remembers how much text came before."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_chars = 0  # of the text so far, without a character that is not complete

    def echo(self, prompt: Sequence[PromptToken]) -> Logprobs:
        """Return the tokens of the prompt, which the text begins with."""
        return {
            "tokens": [text_of(token.token) for token in prompt],
            "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in prompt],
            "top_logprobs": [
                None
                if token.logprob is None
                else _alternatives(token.token, token.logprob, [(other, logprob) for _, other, logprob in token.top])
                for token in prompt
            ],
            "text_offset": [self._advance(token.token) for token in prompt],
        }

    def write(self, tokens: Sequence[TokenLogprob]) -> Logprobs:
        """Return these tokens, which follow those of before."""
        return {
            "tokens": [text_of(token.token) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [_alternatives(token.token, token.logprob, token.top) for token in tokens],
            "text_offset": [self._num_chars if token.hidden else self._advance(token.token) for token in tokens],
        }

    def _advance(self, token: bytes) -> int:
        """Where the token begins; the next one begins behind it."""
        begins = self._num_chars + self._breaks_off(token)
        self._num_chars += len(self._decoder.decode(token))
        return begins

    def _breaks_off(self, token: bytes) -> bool:
        """Return whether a character was begun that this token does not go on with; a sign in its place is shown."""
        begun, _ = self._decoder.getstate()
        return bool(begun) and token[:1] != b"" and not 0x80 <= token[0] < 0xC0


def joined(pieces: Iterator[Logprobs]) -> Logprobs:
    """Return several pieces as one."""
    whole: Logprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        whole["tokens"] += piece["tokens"]
        whole["token_logprobs"] += piece["token_logprobs"]
        whole["top_logprobs"] += piece["top_logprobs"]
        whole["text_offset"] += piece["text_offset"]
    return whole


def _alternatives(token: bytes, logprob: float, top: Sequence[tuple[bytes, float]]) -> dict[str, float]:
    """Return the likeliest tokens and the token itself, by their texts."""
    return {text_of(other): finite(value) for other, value in (*top, (token, logprob))}
