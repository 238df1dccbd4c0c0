"""One random token of one row of logits: temperature, min-p, top-k and top-p over a large vocabulary.

Definition: order the tokens by descending logit, equal logits by ascending id; weigh each with
exp((logit - largest) / temperature) in float64; keep the tokens of at least min_p times the largest weight, then the
first top_k, then the shortest beginning that has top_p of the weight left; return the first token at which the
running sum of weights exceeds `uniform` times the sum of all that are kept.

Sorting 163,840 tokens takes milliseconds, so only some thousand leaders are sorted at first. The weight of the rest
is bounded, then summed in float32, and everything is sorted only if the answer depends on what is still unknown:
the answer grows with the total weight, so it is known if both ends of an interval give the same. It is always the
definition's answer, bit for bit.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
TokenIds = NDArray[np.int64]
Mass = NDArray[np.float64]

# The largest logit of every stripe is a leader, so there are at least this many.
NUM_STRIPES = 256
# Generous bounds of the relative error of a long float64 sum, and of weights computed and summed in float32.
SUM_ERROR = 1e-9
FLOAT32_ERROR = 1e-5


class Shape(NamedTuple):
    """How a distribution is shaped before a token is drawn from it."""

    temperature: float  # above 0
    top_k: int  # 0: all
    top_p: float  # (0, 1]
    min_p: float  # [0, 1]


def draw(logits: Logits, shape: Shape, uniform: float) -> int:
    """Return the token that `uniform` in [0, 1) selects.

    logits  [vocab_size], no NaN, the largest finite; -inf is never drawn
    """
    token_id = _draw_from(leaders(logits), logits, shape, uniform)
    if token_id is None:
        token_id = _draw_from(descending(logits, np.arange(len(logits))), logits, shape, uniform)
    assert token_id is not None, "nothing is unknown when every token is a candidate"
    return token_id


def leaders(logits: Logits) -> TokenIds:
    """Return the leading tokens in descending order: all that reach the least of the stripes' maxima.

    Stripe i is every NUM_STRIPES-th token from i on; of random logits about one in a hundred is a leader.
    """
    whole = len(logits) - len(logits) % NUM_STRIPES
    if whole == 0:
        return descending(logits, np.arange(len(logits)))
    threshold = logits[:whole].reshape(-1, NUM_STRIPES).max(axis=0).min()
    return descending(logits, np.flatnonzero(logits >= threshold))


def descending(logits: Logits, ids: TokenIds) -> TokenIds:
    """Return ascending `ids` in the order of descending logits, equal logits by id."""
    # One integer key per token, because integers sort several times faster than a stable sort by value.
    bits = (logits[ids] + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 makes -0 equal to 0
    keys = (np.where(bits < 0, bits ^ 0x7FFFFFFF, bits) * -(1 << 32)) + ids
    keys.sort()
    return keys & 0xFFFFFFFF


def _draw_from(ids: TokenIds, logits: Logits, shape: Shape, uniform: float) -> int | None:
    """Return the token, or None if it depends on more than `ids`, the leading tokens in descending order."""
    peak = float(logits[ids[0]])
    weights = np.exp((logits[ids].astype(np.float64) - peak) / shape.temperature)
    num_kept = int((-weights).searchsorted(-shape.min_p, side="right"))
    num_kept = min(num_kept, shape.top_k or num_kept)
    mass = np.cumsum(weights[:num_kept])
    last = float(weights[num_kept - 1])
    exact = num_kept < len(ids) or len(ids) == len(logits)
    for low, high in [(mass[-1], mass[-1])] if exact else _totals(logits, peak, shape, len(ids), float(mass[-1]), last):
        first = int(mass.searchsorted(uniform * _least_kept(mass, shape.top_p, low), side="right"))
        index = int(mass.searchsorted(uniform * _most_kept(mass, last, shape.top_p, high), side="right"))
        if first == index < num_kept:
            return int(ids[index])
    return None


def _totals(
    logits: Logits, peak: float, shape: Shape, num_leaders: int, mass: float, last: float
) -> Iterator[tuple[float, float]]:
    """Yield narrowing bounds of the weight of all tokens that top_k and min_p keep, leaders or not."""
    num_others = min(shape.top_k or len(logits), len(logits)) - num_leaders
    yield mass, (mass + num_others * last) * (1 + SUM_ERROR)
    if shape.top_k == 0 and shape.min_p == 0:
        with np.errstate(over="ignore"):  # to -inf, whose weight is 0
            total = float(np.exp((logits - np.float32(peak)) * np.float32(1 / shape.temperature)).sum())
        yield total * (1 - FLOAT32_ERROR), total * (1 + FLOAT32_ERROR)


def _least_kept(mass: Mass, top_p: float, total: float) -> float:
    """At least so much weight stays after top_p if the total is at least `total`."""
    cut = mass.searchsorted(top_p * total)
    return float(mass[cut] if cut < len(mass) else max(top_p * total, mass[-1]))


def _most_kept(mass: Mass, last: float, top_p: float, total: float) -> float:
    """At most so much weight stays after top_p if the total is at most `total`; no further token exceeds `last`."""
    cut = mass.searchsorted(top_p * total)
    return float(mass[cut] if cut < len(mass) else min(top_p * total + last, total))
