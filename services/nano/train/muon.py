"""Muon: gradient descent with orthogonalised updates of matrices (Jordan et al. 2024, kellerjordan.github.io).

At this size it needs about half as many samples as Adam. AdamW trains vectors, embedding, head and router.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# Coefficients of the quintic iteration that moves all singular values towards one.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Optimizer for matrices [..., out, in]; leading dimensions count independent matrices.

    lr        spectral norm of the update of a square matrix
    momentum  momentum of the gradient's running mean, in Nesterov's form
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, iterations: int = 5) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[-2], parameter.shape[-1]].append(parameter)
            # Matrices of the same shape form a batch, because single ones are too small to occupy a core.
            for (rows, columns), parameters in by_shape.items():
                wanted = torch.cat([self._direction(p, group["momentum"]).view(-1, rows, columns) for p in parameters])
                update = orthogonal(wanted, group["iterations"])
                size = group["lr"] * max(1.0, rows / columns) ** 0.5
                pieces = torch.split(update, [p.numel() // (rows * columns) for p in parameters])
                for parameter, piece in zip(parameters, pieces, strict=True):
                    parameter.add_(piece.view_as(parameter), alpha=-size)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["mean"], momentum)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Move all singular values of matrices [n, out, in] to about one (0.7 to 1.2)."""
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    back: Tensor = x.mT if tall else x
    return back
