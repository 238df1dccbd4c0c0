"""One kernel as it is compiled for Hopper: which arguments, which tiles, and what must come out."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A kernel at one entry of its tile table.

    `types` are Triton's: "*bf16", "*i32", "fp32", "i32", ... Pointers and sizes count as multiples of 16, as in the
    model; arguments in `odd` do not.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    wgmma: int = 0  # instructions in the whole kernel
    warnings: tuple[str, ...] = ()  # of ptxas that are known, as C7515: wgmma one after another
    stack: int = 0  # bytes
    odd: tuple[str, ...] = ()
    max_loop: int | None = None  # most machine instructions in the innermost loop
    options: dict[str, Any] = field(default_factory=dict)
