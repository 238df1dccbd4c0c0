"""One kernel to compile for Hopper: its arguments and tiles, and the expected figures."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A kernel at one entry of its tile table.

    `types` are Triton's: "*bf16", "*i32", "fp32", "i32", ... Pointers and sizes are declared as multiples of 16, as in
    the model, except arguments in `odd`.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    wgmma: int = 0  # instructions in the whole kernel
    warnings: tuple[str, ...] = ()  # accepted warnings of ptxas, such as C7515: wgmma are serialised
    stack: int = 0  # bytes
    odd: tuple[str, ...] = ()
    max_loop: int | None = None  # upper limit of machine instructions in the innermost loop
    options: dict[str, Any] = field(default_factory=dict)
