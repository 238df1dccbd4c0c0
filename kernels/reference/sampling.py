"""The next token of every row in plain PyTorch, on any device: the definition of `kernels.draw`.

Random numbers are those of Philox-4x64-10 (Salmon, Moraes, Dror and Shaw, SC 2011) with the seed as key and the
position as counter, so a row's token depends only on its own logits, its shape, its seed and its position.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 10
MASK = 2**64 - 1
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)


class Shapes(NamedTuple):
    """Parameters that shape each row's distribution before a token is drawn; temperature 0 is greedy."""

    temperature: Tensor  # [rows] f64
    top_k: Tensor  # [rows] i32, 0: all
    top_p: Tensor  # [rows] f64, (0, 1]
    min_p: Tensor  # [rows] f64, [0, 1]
    seeds: Tensor  # [rows] i64, the bits of an unsigned number
    positions: Tensor  # [rows] i64


class Edits(NamedTuple):
    """Changes of single logits, one entry per (row, token), computed in float32 in this order:

    x = x / repetition if x > 0 else x * repetition;  x = x - penalty;  x = x + bias;  x = -inf where banned
    """

    rows: Tensor  # [edits] i64
    token_ids: Tensor  # [edits] i64
    repetition: Tensor  # [edits] f32, 1: none
    penalty: Tensor  # [edits] f32
    bias: Tensor  # [edits] f32
    banned: Tensor  # [edits] bool


def adjust(logits: Tensor, edits: Edits) -> Tensor:
    """Return a copy of logits [rows, vocab_size] f32 with the edits; a (row, token) may occur only once."""
    x = logits[edits.rows, edits.token_ids]
    x = torch.where(x > 0, x / edits.repetition, x * edits.repetition) - edits.penalty + edits.bias
    return logits.index_put((edits.rows, edits.token_ids), x.masked_fill(edits.banned, float("-inf")))


def draw(logits: Tensor, shapes: Shapes, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw one token of every row; return also the largest logit of the tokens that may be drawn.

    Order the tokens by descending logit, equal logits by ascending id; weight each by exp((logit - largest) /
    temperature) in float64; keep those whose weight is at least min_p, of these the first top_k, of these the shortest
    prefix with top_p of their weight; take the first token at which the running sum exceeds uniform times the sum.

    logits   [rows, vocab_size] f32
    allowed  [rows, vocab_size] bool; None: all may be drawn, and a row with none gets token 0
    returns  token ids [rows] i64, largest logits [rows] f32, infinite or NaN where no token can be chosen
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    largest = ordered[:, 0]
    greedy = shapes.temperature == 0
    temperature = shapes.temperature.masked_fill(greedy, 1.0)
    weights = ((ordered.double() - largest.double()[:, None]) / temperature[:, None]).exp()
    rank = torch.arange(logits.shape[1], device=logits.device)
    limit = torch.where(shapes.top_k > 0, shapes.top_k, logits.shape[1])
    kept = (weights >= shapes.min_p[:, None]) & (rank < limit[:, None])
    mass = weights.masked_fill(~kept, 0.0).cumsum(-1)
    cut = torch.searchsorted(mass, (shapes.top_p * mass[:, -1])[:, None]).clamp(max=logits.shape[1] - 1)
    target = _uniforms(shapes) * mass.gather(1, cut)[:, 0]
    chosen = torch.searchsorted(mass, target[:, None], right=True).clamp(max=logits.shape[1] - 1)
    chosen = chosen[:, 0].masked_fill(greedy, 0)
    return ids.gather(1, chosen[:, None])[:, 0].masked_fill(~largest.isfinite(), 0), largest


def top_tokens(logits: Tensor, count: int) -> Tensor:
    """Return ids [rows, count] i64 of every row's largest logits, in descending order, equal ones by ascending id."""
    bits = (logits + 0.0).view(torch.int32).long()  # + 0 makes -0 equal to 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    # Keys are distinct because `topk` does not define which of equal values it takes.
    keys = ordered * 2**32 - torch.arange(logits.shape[1], device=logits.device)
    return keys.topk(count, dim=-1).indices


def log_totals(logits: Tensor) -> Tensor:
    """Return the log of the sum of exponentials of every row, [rows] f64."""
    return logits.double().logsumexp(-1)


def philox(counter: int, key: int) -> int:
    """Return the first of the four random 64-bit words."""
    x0, x1, x2, x3 = counter & MASK, 0, 0, 0
    k0, k1 = key & MASK, 0
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * x0, MULTIPLIERS[1] * x2
        x0, x1, x2, x3 = (p1 >> 64) ^ x1 ^ k0, p1 & MASK, (p0 >> 64) ^ x3 ^ k1, p0 & MASK
        k0, k1 = k0 + KEY_STEPS[0] & MASK, k1 + KEY_STEPS[1] & MASK
    return x0


def _uniforms(shapes: Shapes) -> Tensor:
    pairs = zip(shapes.positions.tolist(), shapes.seeds.tolist(), strict=True)
    numbers = [(philox(position, seed) >> 11) * 2.0**-53 for position, seed in pairs]
    return torch.tensor(numbers, dtype=torch.float64, device=shapes.temperature.device)
