"""What is timed: one operation at one size, and who does it."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import roofline
from kernels.roofline import DECODE, PREFILL, Cost
from tests.bench.gpu_kernels.timing import Ceilings, Run


@dataclass(frozen=True)
class Case:
    """One operation at one size, and its contenders: ours first. The inputs live as long as this.

    parts  what has to be done, one after another: the floor is the sum of theirs
    """

    name: str
    parts: tuple[Cost, ...]
    contenders: dict[str, Run]

    @property
    def cost(self) -> Cost:
        """All parts together."""
        return sum(self.parts, Cost(0.0))

    def compiled_too(self, backend: str = "inductor") -> "Case":
        """The same with what PyTorch's compiler makes of its contender, if it has one."""
        plain = self.contenders.get("PyTorch")
        if plain is None:
            return self
        compiled: Run = torch.compile(plain, dynamic=False, backend=backend)
        return replace(self, contenders=self.contenders | {"torch.compile": compiled})

    def floor_s(self, here: Ceilings) -> float:
        """Seconds at least."""
        return sum(here.floor_s(part) for part in self.parts)


class Plan(NamedTuple):
    """Which sizes are timed, and for how long."""

    decode: tuple[int, ...]  # rows
    prefill: tuple[int, ...]  # tokens
    contexts: tuple[int, ...]  # of the rows
    chunks: tuple[tuple[int, int], ...]  # tokens of a chunk and of its context
    dense: tuple[tuple[int, int], ...]  # shapes of weights
    patches: tuple[int, ...]
    seconds: float  # for each timing
    public_tiles: int = 4  # of the INT4 product that ours is compared with


ALL_DENSE = (
    (roofline.Q_LORA + roofline.LATENT + roofline.ROPE, roofline.HIDDEN),
    (roofline.HEADS * (roofline.NOPE + roofline.ROPE), roofline.Q_LORA),
    (roofline.HIDDEN, roofline.HEADS * roofline.VALUE),
    (2 * roofline.WIDTH, roofline.HIDDEN),
    (roofline.HIDDEN, roofline.WIDTH),
    (roofline.VOCAB, roofline.HIDDEN),
)
FULL = Plan(
    decode=DECODE,
    prefill=PREFILL,
    contexts=(4096, 32_768),
    chunks=((4096, 4096), (32_768, 32_768), (4096, 32_768)),
    dense=ALL_DENSE,
    patches=(1024, 4096),
    seconds=0.3,
)
QUICK = Plan(
    decode=(1, 32, 128),
    prefill=(4096,),
    contexts=(4096, 32_768),
    chunks=((4096, 4096), (4096, 32_768)),
    dense=ALL_DENSE[:3],
    patches=(4096,),
    seconds=0.05,
    public_tiles=2,
)


def bf16(*shape: int) -> Tensor:
    """Random numbers on the device of the context."""
    return torch.randn(shape, dtype=torch.bfloat16)
