"""The log of the sum of a row's exponentials, which turns logits into log-probabilities."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_V = 1024
NUM_WARPS = 16


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


def log_totals(logits: Tensor) -> Tensor:
    """As `kernels.log_totals`."""
    rows, vocab = logits.shape
    assert logits.is_contiguous()
    totals = torch.empty(rows, dtype=torch.float64, device=logits.device)
    if rows:
        log_total_kernel[(rows,)](logits, totals, vocab, TILE_V=TILE_V, num_warps=NUM_WARPS)
    return totals
