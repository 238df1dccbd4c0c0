"""The next token of every row: penalties, bias and bans, then greedy or a draw, with log-probabilities if asked for.

Every row is computed alone, with arithmetic that no neighbour can change, and its random number depends on nothing
but (seed, position): the same generation gives the same tokens in any batch, on any replica, after any move.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.attention.sampling.draw import Logits, Shape, descending, draw
from services.attention.sampling.random_numbers import uniform
from services.runtime.errors import InvalidRequest, NumericError

# Below this only exact ties would be drawn from; dividing by it cannot overflow.
GREEDY_BELOW = 1e-5
MOST_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """How one generation chooses its tokens; the defaults change nothing. OpenAI's definitions, vLLM's extras."""

    temperature: float = 1.0  # below 1e-5: the largest logit, of equal ones the lowest id
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    presence_penalty: float = 0.0  # subtracted once from every generated token
    frequency_penalty: float = 0.0  # subtracted for every time that it was generated
    repetition_penalty: float = 1.0  # divides positive logits, multiplies negative ones, of prompt and generated tokens
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int = 0  # so many come before any of stop_token_ids
    stop_token_ids: Sequence[int] = ()
    seed: int = 0  # unsigned 64-bit
    num_top_logprobs: int | None = None  # 0 to 20 alternatives beside the token's own; None: no log-probabilities
    banned_ids: Sequence[int] = ()  # never come, as if the vocabulary did not have them

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def needs_history(self) -> bool:
        """Whether the choice depends on the tokens before."""
        penalties = self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1.0, self.min_new_tokens
        return any(penalties)

    def check(self, vocab_size: int) -> None:
        """InvalidRequest that names the first field outside its range."""
        for name, low, high in (
            ("temperature", 0.0, 2.0),
            ("top_k", 0, np.inf),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
            ("seed", 0, 2**64 - 1),
            ("num_top_logprobs", 0, min(MOST_TOP_LOGPROBS, vocab_size)),
        ):
            value = getattr(self, name)
            # Written so that NaN fails too.
            _require(value is None or low <= value <= high, name, value, f"{low} to {high}")
        _require(0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")
        _require(0.0 < self.repetition_penalty < np.inf, "repetition_penalty", self.repetition_penalty, "above 0")
        _require(self.min_new_tokens >= 0, "min_new_tokens", self.min_new_tokens, "0 or more")
        for name, ids in (("stop_token_ids", self.stop_token_ids), ("logit_bias", self.logit_bias)):
            wrong = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
            _require(not wrong, name, wrong, f"ids below {vocab_size}")
        large = [bias for bias in self.logit_bias.values() if not -100 <= bias <= 100]
        _require(not large, "logit_bias", large, "-100 to 100")


class History:
    """A generation's tokens for its penalties. Follows the list of the generation, and belongs to its owner."""

    def __init__(self, token_ids: Sequence[int], num_prompt: int) -> None:
        self._token_ids = token_ids
        self._num_prompt = num_prompt
        self._num_counted = num_prompt
        self._generated: Counter[int] = Counter()
        self._seen = set(token_ids[:num_prompt])

    @property
    def num_new(self) -> int:
        """Tokens generated so far."""
        return len(self._token_ids) - self._num_prompt

    def generated(self) -> Mapping[int, int]:
        """How often each token was generated."""
        self._catch_up()
        return self._generated

    def seen(self) -> Set[int]:
        """Tokens of the prompt and of what was generated."""
        self._catch_up()
        return self._seen

    def _catch_up(self) -> None:
        new = self._token_ids[self._num_counted :]
        self._generated.update(new)
        self._seen.update(new)
        self._num_counted += len(new)


@dataclass(frozen=True)
class Rule:
    """The constraint of the next token.

    mask    [vocab_size], the tokens that may come
    settle  takes the token that was drawn and returns it, or another one if the answer had no room to end after it
    """

    mask: NDArray[np.bool_]
    settle: Callable[[int], int] | None = None


@dataclass(frozen=True)
class SampledToken:
    """A chosen token; log-probabilities, also of the likeliest tokens, are of the model's own distribution.

    is_cut  another token was drawn, after which the answer had no room to end
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    is_cut: bool = False


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    positions: Sequence[int],
    histories: Sequence[History | None] | None = None,
    rules: Sequence[Rule | NumericError | None] | None = None,
) -> list[SampledToken | NumericError]:
    """Choose a token for every row. A row of logits that are no numbers gets a NumericError; no other row changes.

    logits     [rows, vocab_size] f32; logits of banned tokens are overwritten
    positions  where the new token will stand in its generation: the number of tokens before it
    histories  needed by rows with params.needs_history; None elsewhere
    rules      of constrained rows; an error becomes the result of its row
    """
    assert logits.dtype == torch.float32
    rows = logits.numpy(force=True)
    known = histories if histories is not None else [None] * len(rows)
    bound = rules if rules is not None else [None] * len(rows)
    return [sample_row(*row) for row in zip(rows, params, positions, known, bound, strict=True)]


def sample_row(
    row: Logits,
    params: SamplingParams,
    position: int,
    history: History | None = None,
    rule: Rule | NumericError | None = None,
) -> SampledToken | NumericError:
    """Choose a token for one row, [vocab_size] f32. Any thread may call it."""
    if isinstance(rule, NumericError):
        return rule
    if params.banned_ids:
        row[_ids(params.banned_ids)] = -np.inf
    try:
        return _choose(row, params, position, history, rule)
    except NumericError as error:
        return error


def _choose(
    raw: Logits, params: SamplingParams, position: int, history: History | None, rule: Rule | None
) -> SampledToken | NumericError:
    logits = _adjust(raw, params, history, rule)
    # Only what may come is drawn from, as if nothing else existed.
    allowed = None if rule is None else np.flatnonzero(rule.mask)
    if allowed is not None:
        if len(allowed) == 0:
            return NumericError(f"the constraint allows no token at position {position}")
        logits = logits[allowed]
    index = int(logits.argmax())
    # NaN counts as the largest, so the largest tells about all; a ban must not hide it.
    for largest in (logits[index],) if logits is raw else (logits[index], raw.max()):
        if not np.isfinite(largest):
            return NumericError(f"no token can be chosen at position {position}: the largest logit is {largest}")
    if not params.is_greedy:
        shape = Shape(params.temperature, params.top_k, params.top_p, params.min_p)
        index = draw(logits, shape, uniform(params.seed, position))
    drawn = index if allowed is None else int(allowed[index])
    token = settled(drawn, rule)
    return token if params.num_top_logprobs is None else _with_logprobs(token, raw, params.num_top_logprobs)


def settled(drawn: int, rule: Rule | None) -> SampledToken:
    """Return the token that the rule takes for the one that was drawn."""
    token_id = drawn if rule is None or rule.settle is None else rule.settle(drawn)
    return SampledToken(token_id, is_cut=token_id != drawn)


def _adjust(raw: Logits, params: SamplingParams, history: History | None, rule: Rule | None) -> Logits:
    """Return the logits after penalties, then bias, then bans; the same array if none applies."""
    if not (params.needs_history or params.logit_bias):
        return raw
    logits = raw.copy()
    if params.needs_history:
        assert history is not None, "penalties and min_new_tokens need the history"
        _penalise(logits, params, history)
    if params.logit_bias:
        logits[_ids(params.logit_bias)] += np.fromiter(params.logit_bias.values(), dtype=np.float32)
    if stops_are_banned(params, history, rule):
        logits[_ids(params.stop_token_ids)] = -np.inf
    return logits


def stops_are_banned(params: SamplingParams, history: History | None, rule: Rule | None) -> bool:
    """Whether it is too early to end. An answer that is complete and cannot go on under its constraint may end."""
    if history is None or history.num_new >= params.min_new_tokens:
        return False
    return rule is None or bool(rule.mask.sum() > rule.mask[_ids(params.stop_token_ids)].sum())


def _penalise(logits: Logits, params: SamplingParams, history: History) -> None:
    if params.repetition_penalty != 1.0:
        ids = _ids(history.seen())
        penalty = np.float32(params.repetition_penalty)
        logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    if params.presence_penalty or params.frequency_penalty:
        generated = history.generated()
        counts = np.fromiter(generated.values(), dtype=np.float32)
        logits[_ids(generated)] -= params.presence_penalty + params.frequency_penalty * counts


def _ids(token_ids: Iterable[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.fromiter(token_ids, dtype=np.int64)


def _with_logprobs(token: SampledToken, raw: Logits, num_top: int) -> SampledToken:
    peak = raw.max()
    with np.errstate(over="ignore"):
        total = float(peak) + float(np.log(np.exp(raw - peak).sum(dtype=np.float64)))
    # All that reach the num_top-th largest value, so that ties are decided by id.
    leading = np.flatnonzero(raw >= np.partition(raw, len(raw) - num_top)[len(raw) - num_top]) if num_top else _ids(())
    top = descending(raw, leading)[:num_top].tolist()
    alternatives = tuple((one, float(raw[one]) - total) for one in top)
    return replace(token, logprob=float(raw[token.token_id]) - total, top_logprobs=alternatives)


def _require(fine: bool, name: str, value: object, expected: str) -> None:
    if not fine:
        raise InvalidRequest(f"{name} is {value}, expected {expected}", field=name)
