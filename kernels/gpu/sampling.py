"""The next token of every row by search instead of sorting.

What a row keeps is a beginning of its tokens in the order of descending logit, and so is what lies before the token
drawn. Each such beginning ends at a threshold, which a search of the float's 32 ordered bits finds, WAYS thresholds per
pass over the row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.philox import uniform
from kernels.sampling_reference import Shapes

TILE_V = 1024
WAYS = 8
NUM_WARPS = 16
LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _key(logit):
    """An integer in the order of the logits: 0 and -0 are equal."""
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _logit(key):
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _load(row, allowed, begin, vocab, MASKED: tl.constexpr, TILE_V: tl.constexpr):
    """A tile of logits, and which of its tokens take part."""
    token = begin + tl.arange(0, TILE_V)
    inside = token < vocab
    logit = tl.load(row + token, mask=inside, other=-float("inf"))
    if MASKED:
        inside = inside & (tl.load(allowed + token, mask=inside, other=0) != 0)
    return token, logit, inside


@triton.jit
def _weight(logit, peak, temperature):
    return tl.exp((logit.to(tl.float64) - peak) / temperature)


@triton.jit
def _above(
    row, allowed, key, peak, temperature, least, vocab, COUNT: tl.constexpr, MASKED: tl.constexpr, TILE_V: tl.constexpr
):
    """Of the tokens above a key: their weight, or their number if COUNT; and how many tokens have exactly this key."""
    total = tl.zeros([TILE_V], tl.float64)
    equal = tl.zeros([TILE_V], tl.int32)
    for begin in range(0, vocab, TILE_V):
        _, logit, inside = _load(row, allowed, begin, vocab, MASKED, TILE_V)
        weight = _weight(logit, peak, temperature)
        inside = inside & (weight >= least)
        amount = tl.full([TILE_V], 1.0, tl.float64) if COUNT else weight
        total += tl.where(inside & (_key(logit) > key), amount, 0.0)
        equal += (inside & (_key(logit) == key)).to(tl.int32)
    return tl.sum(total, 0), tl.sum(equal, 0)


@triton.jit
def _search(
    row,
    allowed,
    target,
    STRICT: tl.constexpr,
    COUNT: tl.constexpr,
    lowest,
    highest,
    cut,
    cut_amount,
    peak,
    temperature,
    least,
    vocab,
    MASKED: tl.constexpr,
    WAYS: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """The largest key in [lowest, highest] from which upwards the tokens reach the target, or exceed it if STRICT.

    Tokens at or below `cut` do not count, but for `cut_amount` at the cut itself.
    """
    way = tl.arange(0, WAYS)
    low = lowest  # taken as sufficient, whatever rounding says
    high = highest + 1
    while high - low > 1:
        thresholds = low + (high - low) * way // WAYS
        parts = tl.zeros([TILE_V, WAYS], tl.float64)
        for begin in range(0, vocab, TILE_V):
            _, logit, inside = _load(row, allowed, begin, vocab, MASKED, TILE_V)
            weight = _weight(logit, peak, temperature)
            key = _key(logit)
            inside = inside & (weight >= least) & (key > cut)
            amount = tl.full([TILE_V], 1.0, tl.float64) if COUNT else weight
            amount = tl.where(inside, amount, 0.0)
            parts += tl.where(key[:, None] >= thresholds[None, :], amount[:, None], 0.0)
        sums = tl.sum(parts, 0) + tl.where(thresholds <= cut, cut_amount, 0.0)
        enough = (sums > target) if STRICT else (sums >= target)
        enough = enough | (thresholds == low)
        new_low = tl.max(tl.where(enough, thresholds, low), 0)
        high = tl.min(tl.where(enough, high, thresholds), 0)
        low = new_low
    return low


@triton.jit
def _draw(
    row,
    allowed,
    best,
    temperature,
    top_k,
    top_p,
    least,
    share,
    vocab,
    MASKED: tl.constexpr,
    WAYS: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """The token at which the running weight exceeds `share` of what min-p, top-k and top-p keep."""
    peak = best.to(tl.float64)
    highest = _key(best)
    # The smallest logit that has any weight, so that the search ends at a token.
    lowest = highest
    total = tl.zeros([TILE_V], tl.float64)
    for begin in range(0, vocab, TILE_V):
        _, logit, inside = _load(row, allowed, begin, vocab, MASKED, TILE_V)
        weight = _weight(logit, peak, temperature)
        inside = inside & (weight >= least)
        total += tl.where(inside, weight, 0.0)
        lowest = tl.minimum(lowest, tl.min(tl.where(inside & (weight > 0), _key(logit), highest), 0))
    mass = tl.sum(total, 0)
    cut = lowest - 1
    cut_mass = 0.0 * mass
    if (top_k > 0) & (top_k < vocab):
        limit = top_k.to(tl.float64)
        found = _search(
            row, allowed, limit, False, True, lowest, highest, lowest - 1, 0.0 * mass, peak, temperature, least,
            vocab, MASKED, WAYS, TILE_V,
        )  # fmt: skip
        num_above, num_equal = _above(row, allowed, found, peak, temperature, least, vocab, True, MASKED, TILE_V)
        mass_above, _ = _above(row, allowed, found, peak, temperature, least, vocab, False, MASKED, TILE_V)
        kept = tl.minimum(limit - num_above, num_equal.to(tl.float64))
        cut = found
        cut_mass = kept * _weight(_logit(found), peak, temperature)
        lowest = found
        mass = mass_above + cut_mass
    if top_p < 1:
        target = top_p * mass
        found = _search(
            row, allowed, target, False, False, lowest, highest, cut, cut_mass, peak, temperature, least,
            vocab, MASKED, WAYS, TILE_V,
        )  # fmt: skip
        mass_above, num_equal = _above(row, allowed, found, peak, temperature, least, vocab, False, MASKED, TILE_V)
        weight = _weight(_logit(found), peak, temperature)
        ties = tl.ceil((target - mass_above) / weight)
        mass = mass_above + tl.minimum(tl.maximum(ties, 1.0), num_equal.to(tl.float64)) * weight
    target = share * mass
    found = _search(
        row, allowed, target, True, False, lowest, highest, cut, cut_mass, peak, temperature, least,
        vocab, MASKED, WAYS, TILE_V,
    )  # fmt: skip
    mass_above, num_equal = _above(row, allowed, found, peak, temperature, least, vocab, False, MASKED, TILE_V)
    weight = _weight(_logit(found), peak, temperature)
    place = tl.floor((target - mass_above) / weight).to(tl.int32)
    place = tl.minimum(tl.maximum(place, 0), num_equal - 1)
    passed = tl.full([], 0, tl.int32)
    drawn = tl.full([], 0, tl.int32)
    for begin in range(0, vocab, TILE_V):
        token, logit, inside = _load(row, allowed, begin, vocab, MASKED, TILE_V)
        match = (inside & (_key(logit) == found)).to(tl.int32)
        rank = passed + tl.cumsum(match, 0) - 1
        hit = (match != 0) & (rank == place)
        drawn += tl.sum(tl.where(hit, token, 0), 0)
        passed += tl.sum(match, 0)
    return drawn


@triton.jit
def draw_kernel(
    logits,
    allowed,
    temperatures,
    top_ks,
    top_ps,
    min_ps,
    seeds,
    positions,
    token_ids,
    largest,
    vocab,
    MASKED: tl.constexpr,
    WAYS: tl.constexpr,
    TILE_V: tl.constexpr,
):
    """One row from its logits to its token; grid (rows)."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * vocab
    allowed += index * vocab
    # Greedy: the largest logit, of equal ones the lowest id. NaN counts as larger than anything.
    tops = tl.full([TILE_V], -float("inf"), tl.float32)
    top_ids = tl.full([TILE_V], 2**31 - 1, tl.int32)
    nans = tl.zeros([TILE_V], tl.int32)
    for begin in range(0, vocab, TILE_V):
        token, logit, inside = _load(row, allowed, begin, vocab, MASKED, TILE_V)
        nans += (inside & (logit != logit)).to(tl.int32)  # noqa: PLR0124
        better = inside & (logit > tops)
        tops = tl.where(better, logit, tops)
        top_ids = tl.where(better, token, top_ids)
    best = tl.max(tops, 0)
    best_id = tl.min(tl.where(tops == best, top_ids, 2**31 - 1), 0)
    broken = tl.sum(nans, 0)
    usable = (broken == 0) & (best > -float("inf")) & (best < float("inf"))
    temperature = tl.load(temperatures + index)
    if usable & (temperature > 0):
        best_id = _draw(
            row,
            allowed,
            best,
            temperature,
            tl.load(top_ks + index),
            tl.load(top_ps + index),
            tl.load(min_ps + index),
            uniform(tl.load(seeds + index), tl.load(positions + index)),
            vocab,
            MASKED,
            WAYS,
            TILE_V,
        )
    tl.store(token_ids + index, tl.where(usable, best_id, 0).to(tl.int64))
    tl.store(largest + index, tl.where(broken > 0, float("nan"), best))


@triton.jit
def log_total_kernel(logits, totals, vocab, TILE_V: tl.constexpr):
    """Log of the sum of exponentials; grid (rows)."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * vocab
    peak = tl.full([TILE_V], -float("inf"), tl.float32)
    for begin in range(0, vocab, TILE_V):
        token = begin + tl.arange(0, TILE_V)
        peak = tl.maximum(peak, tl.load(row + token, mask=token < vocab, other=-float("inf")))
    most = tl.max(peak, 0).to(tl.float64)
    total = tl.zeros([TILE_V], tl.float64)
    for begin in range(0, vocab, TILE_V):
        token = begin + tl.arange(0, TILE_V)
        logit = tl.load(row + token, mask=token < vocab, other=-float("inf"))
        total += tl.exp(logit.to(tl.float64) - most)
    tl.store(totals + index, most + tl.log(tl.sum(total, 0)))


def draw(logits: Tensor, shapes: Shapes, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `kernels.draw`; the host does not wait for it."""
    rows, vocab = logits.shape
    assert logits.is_contiguous() and (allowed is None or allowed.is_contiguous())
    token_ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    largest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        draw_kernel[(rows,)](
            logits,
            logits if allowed is None else allowed,
            *shapes,
            token_ids,
            largest,
            vocab,
            MASKED=allowed is not None,
            WAYS=WAYS,
            TILE_V=TILE_V,
            num_warps=NUM_WARPS,
        )
    return token_ids, largest


def log_totals(logits: Tensor) -> Tensor:
    """As `kernels.log_totals`."""
    rows, vocab = logits.shape
    assert logits.is_contiguous()
    totals = torch.empty(rows, dtype=torch.float64, device=logits.device)
    if rows:
        log_total_kernel[(rows,)](logits, totals, vocab, TILE_V=TILE_V, num_warps=NUM_WARPS)
    return totals
