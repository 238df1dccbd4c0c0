"""Choosing tokens on the device that holds the logits; `kernels/reference/sampling.py` defines every result."""

from torch import Tensor

from kernels.reference import sampling as sampling_reference
from kernels.reference.sampling import Edits, Shapes, adjust, top_tokens

__all__ = ["Edits", "Shapes", "adjust", "draw", "log_totals", "top_tokens"]


def draw(logits: Tensor, shapes: Shapes, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token of every row, and the largest logit of those that it was chosen from. The host does not wait.

    logits   [rows, vocab_size] f32, contiguous
    allowed  [rows, vocab_size] bool; None: all may be drawn, and a row with none gets token 0
    returns  token ids [rows] i64, largest logits [rows] f32: infinite or NaN where no token can be chosen
    """
    if logits.is_cpu:
        return sampling_reference.draw(logits, shapes, allowed)
    from kernels.gpu import sampling  # noqa: PLC0415

    return sampling.draw(logits, shapes, allowed)


def log_totals(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials of every row of logits [rows, vocab_size] f32: [rows] f64."""
    if logits.is_cpu:
        return sampling_reference.log_totals(logits)
    from kernels.gpu import log_totals as gpu  # noqa: PLC0415

    return gpu.log_totals(logits)
