"""The next token of every row by search instead of sorting.

Order a row's tokens by descending logit. The tokens that top_k and top_p keep are a prefix of this order, and so are
the tokens before the drawn one. Each prefix ends at a threshold, which a search of the float's 32 ordered bits finds;
it tries WAYS thresholds per pass over the row. Several programs share a row: each finds the sums of its part in one
launch, and at the start of the next launch every program adds the sums of all parts in the same order. So a row needs
no atomics and takes the same steps in every batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.device import cdiv, power_of_2
from kernels.gpu.log_totals import log_totals
from kernels.gpu.philox import uniform
from kernels.reference.sampling import Shapes

__all__ = ["draw", "log_totals"]

PART = 2048  # tokens of one program
WAYS = 16
PART_WARPS = 8
STATE = tl.constexpr(8)  # numbers of a row's state, in the order of `advance_kernel`

# Phases of a row: the weight of all its tokens, then for each limit a search, and the sums above the found threshold.
MASS = tl.constexpr(0)
TOP_K = tl.constexpr(1)
TOP_K_ABOVE = tl.constexpr(2)
TOP_P = tl.constexpr(3)
TOP_P_ABOVE = tl.constexpr(4)
DRAW = tl.constexpr(5)
DRAW_ABOVE = tl.constexpr(6)
DONE = tl.constexpr(7)


@triton.jit
def _key(logit):
    """Return an integer with the order of the logits; 0 and -0 give the same."""
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _logit(key):
    bits = key.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit
def _load(row, allowed, begin, vocab, MASKED: tl.constexpr, TILE_V: tl.constexpr):
    """Load a tile of logits, with a mask of the tokens that may be drawn."""
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
def largest_kernel(logits, allowed, tops, vocab, MASKED: tl.constexpr, PART: tl.constexpr):
    """For a part of a row: the largest logit, the lowest id that has it, the number of NaN; grid (rows, parts)."""
    index = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    token, logit, inside = _load(logits + index * vocab, allowed + index * vocab, part * PART, vocab, MASKED, PART)
    is_number = logit == logit  # noqa: PLR0124
    best = tl.max(tl.where(inside & is_number, logit, -float("inf")), 0)
    first = tl.min(tl.where(inside & (logit == best), token, vocab), 0)
    place = tops + (index * tl.num_programs(1) + part) * 3
    tl.store(place, best.to(tl.float64))
    tl.store(place + 1, first.to(tl.float64))
    tl.store(place + 2, tl.sum((inside & (is_number == 0)).to(tl.int32), 0).to(tl.float64))


@triton.jit
def begin_kernel(
    logits, allowed, temperatures, min_ps, tops, state, sums, token_ids, largest, vocab,
    MASKED: tl.constexpr, WAYS: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Finish greedy rows; for others store each part's weight and smallest key with a weight; grid (rows, parts)."""
    index = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    other = tl.arange(0, PARTS)
    place = tops + (index * parts + other) * 3
    bests = tl.load(place, mask=other < parts, other=-float("inf"))
    best = tl.max(bests, 0).to(tl.float32)
    # Of equal logits the lowest id, in the first part that has one. NaN counts as the largest.
    ids = tl.load(place + 1, mask=(other < parts) & (bests == best), other=2147483647.0)
    broken = tl.sum(tl.load(place + 2, mask=other < parts, other=0.0), 0)
    usable = (broken == 0) & (best > -float("inf")) & (best < float("inf"))
    temperature = tl.load(temperatures + index)
    draws = usable & (temperature > 0)
    if part == 0:
        tl.store(token_ids + index, tl.where(usable, tl.min(ids, 0), 0.0).to(tl.int64))
        tl.store(largest + index, tl.where(broken > 0, float("nan"), best))
        tl.store(state + index * STATE, tl.where(draws, MASS * 1.0, DONE * 1.0).to(tl.float64))
    if draws:
        row = logits + index * vocab
        _, logit, inside = _load(row, allowed + index * vocab, part * PART, vocab, MASKED, PART)
        weight = _weight(logit, best.to(tl.float64), temperature)
        inside = inside & (weight >= tl.load(min_ps + index))
        out = sums + (index * parts + part) * WAYS
        tl.store(out, tl.sum(tl.where(inside, weight, 0.0), 0))
        lowest = tl.min(tl.where(inside & (weight > 0), _key(logit), _key(best)), 0)
        tl.store(out + 1, lowest.to(tl.float64))


@triton.jit
def _is_search(phase):
    return (phase == TOP_K) | (phase == TOP_P) | (phase == DRAW)


@triton.jit
def _narrowed(total, low, high, cut, cut_amount, target, strict, WAYS: tl.constexpr):
    """Narrow the search for the largest key whose tokens, from it upwards, reach the target; return the interval."""
    thresholds = low + (high - low) * tl.arange(0, WAYS) // WAYS
    amounts = total + tl.where(thresholds <= cut, cut_amount, 0.0)
    enough = tl.where(strict, amounts > target, amounts >= target)
    enough = enough | (thresholds == low)  # sufficient by definition, also if rounding says otherwise
    return tl.max(tl.where(enough, thresholds, low), 0), tl.min(tl.where(enough, high, thresholds), 0)


@triton.jit
def _take(
    row, allowed, key, place, counts, token_id, vocab, MASKED: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr
):
    """Store the id of the token with this key that has `place` such tokens before it, if this part holds it."""
    part = tl.program_id(1)
    other = tl.arange(0, PARTS)
    before = tl.sum(tl.where(other < part, counts, 0.0), 0).to(tl.int32)
    token, logit, inside = _load(row, allowed, part * PART, vocab, MASKED, PART)
    match = (inside & (_key(logit) == key)).to(tl.int32)
    hit = (match != 0) & (before + tl.cumsum(match, 0) - 1 == place)
    if tl.sum(hit.to(tl.int32), 0) > 0:
        tl.store(token_id, tl.sum(tl.where(hit, token, 0), 0).to(tl.int64))


@triton.jit
def _look(
    row, allowed, out, phase, low, high, cut, peak, temperature, least, vocab,
    MASKED: tl.constexpr, WAYS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Store the sums of this part that the phase needs."""
    _, logit, inside = _load(row, allowed, tl.program_id(1) * PART, vocab, MASKED, PART)
    weight = _weight(logit, peak, temperature)
    key = _key(logit)
    inside = inside & (weight >= least)
    if _is_search(phase):
        amount = tl.where(inside & (key > cut), tl.where(phase == TOP_K, 1.0, weight), 0.0)
        for i in range(WAYS):
            tl.store(out + i, tl.sum(tl.where(key >= low + (high - low) * i // WAYS, amount, 0.0), 0))
    else:
        tl.store(out, tl.sum(tl.where(inside & (key > low), weight, 0.0), 0))
        tl.store(out + 1, tl.sum((inside & (key == low)).to(tl.int32), 0).to(tl.float64))
        tl.store(out + 2, tl.sum((inside & (key > low)).to(tl.int32), 0).to(tl.float64))


@triton.jit
def advance_kernel(  # noqa: PLR0912, PLR0915 - one state after another
    logits, allowed, temperatures, top_ks, top_ps, min_ps, seeds, positions, state, next_state, sums, next_sums,
    token_ids, largest, vocab,
    MASKED: tl.constexpr, WAYS: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One pass over a row: combines the sums of the pass before, then computes the next ones; grid (rows, parts).

    state    phase; low, high: the key searched for is in [low, high); lowest: smallest key that may be drawn; cut:
             tokens with this key count cut_amount in all, tokens below it nothing; mass: weight of the kept tokens;
             target of the search
    sums     for each part. In a search: weight or number of the tokens at or above each of WAYS thresholds. After it:
             weight of the tokens above a key, number of tokens with this key, number of tokens above it
    """
    index = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    row = logits + index * vocab
    allowed += index * vocab
    state += index * STATE
    next_state += index * STATE
    phase = tl.load(state).to(tl.int32)
    if phase == DONE:
        if part == 0:
            tl.store(next_state, DONE * 1.0)
        return
    low = tl.load(state + 1).to(tl.int64)
    high = tl.load(state + 2).to(tl.int64)
    lowest = tl.load(state + 3).to(tl.int64)
    cut = tl.load(state + 4).to(tl.int64)
    cut_amount = tl.load(state + 5)
    mass = tl.load(state + 6)
    target = tl.load(state + 7)
    temperature = tl.load(temperatures + index)
    least = tl.load(min_ps + index)
    top_k = tl.load(top_ks + index)
    top_p = tl.load(top_ps + index)
    best = tl.load(largest + index)
    peak = best.to(tl.float64)
    highest = _key(best)
    way = tl.arange(0, WAYS)
    other = tl.arange(0, PARTS)
    at = sums + (index * parts + other) * WAYS
    total = tl.sum(tl.load(at[:, None] + way[None, :], mask=(other < parts)[:, None], other=0.0), 0)
    first = tl.sum(tl.where(way == 0, total, 0.0), 0)
    equal = tl.sum(tl.where(way == 1, total, 0.0), 0)
    above = tl.sum(tl.where(way == 2, total, 0.0), 0)
    ends = phase == MASS
    if _is_search(phase):
        low, high = _narrowed(total, low, high, cut, cut_amount, target, phase == DRAW, WAYS)
    elif phase == MASS:
        mass = first
        keys = tl.load(at + 1, mask=other < parts, other=2147483647.0)
        lowest = tl.min(keys, 0).to(tl.int64)
        cut = lowest - 1
        cut_amount = 0.0 * mass
    else:  # the search has ended: sums above the found key
        weight = _weight(_logit(low), peak, temperature)
        ends = True
        if phase == TOP_K_ABOVE:
            cut = low
            cut_amount = tl.minimum(top_k.to(tl.float64) - above, equal) * weight
            lowest = low
            mass = first + cut_amount
        elif phase == TOP_P_ABOVE:
            ties = tl.ceil((target - first) / weight)
            mass = first + tl.minimum(tl.maximum(ties, 1.0), equal) * weight
        else:
            place = tl.floor((target - first) / weight)
            place = tl.minimum(tl.maximum(place, 0.0), equal - 1.0).to(tl.int32)
            counts = tl.load(at + 1, mask=other < parts, other=0.0)
            _take(row, allowed, low, place, counts, token_ids + index, vocab, MASKED, PART, PARTS)
    if phase == DRAW_ABOVE:
        if part == 0:
            tl.store(next_state, DONE * 1.0)
        return
    if ends:  # begin the row's next limit
        low = lowest
        high = highest + 1
        if (phase == MASS) & (top_k > 0) & (top_k < vocab):
            phase = TOP_K
            target = top_k.to(tl.float64)
        elif (phase <= TOP_K_ABOVE) & (top_p < 1):
            phase = TOP_P
            target = top_p * mass
        else:
            phase = DRAW
            target = uniform(tl.load(seeds + index), tl.load(positions + index)) * mass
    if (high - low <= 1) & _is_search(phase):
        phase += 1
    if part == 0:
        tl.store(next_state, phase.to(tl.float64))
        tl.store(next_state + 1, low.to(tl.float64))
        tl.store(next_state + 2, high.to(tl.float64))
        tl.store(next_state + 3, lowest.to(tl.float64))
        tl.store(next_state + 4, cut.to(tl.float64))
        tl.store(next_state + 5, cut_amount)
        tl.store(next_state + 6, mass)
        tl.store(next_state + 7, target)
    out = next_sums + (index * parts + part) * WAYS
    _look(row, allowed, out, phase, low, high, cut, peak, temperature, least, vocab, MASKED, WAYS, PART)


def num_passes(ways: int) -> int:
    """Return the launches of `advance_kernel` that finish every row: for each limit a search of 32 bits and sums."""
    bits = ways.bit_length() - 1
    return 3 * (cdiv(32, bits) + 1) + 1


def draw(logits: Tensor, shapes: Shapes, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """As `kernels.draw`; the host does not wait for it."""
    rows, vocab = logits.shape
    assert logits.is_contiguous() and (allowed is None or allowed.is_contiguous())
    token_ids = torch.empty(rows, dtype=torch.int64, device=logits.device)
    largest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows == 0:
        return token_ids, largest
    parts = cdiv(vocab, PART)
    tops = torch.empty(rows, parts, 3, dtype=torch.float64, device=logits.device)
    states = torch.empty(2, rows, STATE.value, dtype=torch.float64, device=logits.device)
    sums = torch.empty(2, rows, parts, WAYS, dtype=torch.float64, device=logits.device)
    grid = (rows, parts)
    masks = logits if allowed is None else allowed
    sizes = {"MASKED": allowed is not None, "PART": PART, "num_warps": PART_WARPS}
    largest_kernel[grid](logits, masks, tops, vocab, **sizes)
    sizes |= {"WAYS": WAYS, "PARTS": power_of_2(parts)}
    begin_kernel[grid](
        logits, masks, shapes.temperature, shapes.min_p, tops, states[0], sums[0], token_ids, largest, vocab, **sizes
    )
    for i in range(num_passes(WAYS)):
        now, after = i % 2, (i + 1) % 2
        found = states[now], states[after], sums[now], sums[after]
        advance_kernel[grid](logits, masks, *shapes, *found, token_ids, largest, vocab, **sizes)
    return token_ids, largest
