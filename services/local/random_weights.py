"""Random weights that behave like a trained model's: healthy activations, busy experts, varied output.

Every linear keeps the size of what passes through it (standard deviation gain / sqrt(in)). One direction, `u`, a
vector of signs, is added to every embedding and survives in the residual stream; the head reads it to make single
tokens likely or rare, and the router is blind to it, so that experts are used evenly.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from services.local.random_dims import RandomDims
from services.model.config import GROUP_SIZE
from services.model.tensor_names import EMBEDDING, HEAD, TensorSpec

PIECE_NUMBERS = 1 << 24  # most numbers in memory at once, 64 MiB in fp32
LOGIT_SPREAD = 2.5  # standard deviation of the logits of ordinary tokens
KEPT_DIRECTION = 0.4  # size of `u` in the normalised output of the last layer, measured
ROUTER_SPREAD = 1.5  # standard deviation of router logits
INT4_RMS = 4.78  # of -8..7, uniform but for one -8 in each group


class RandomWeights:
    """Makes the tensors of a random checkpoint, each from the seed and its own name, whatever the order.

    token_biases  what is added to each token's logit, one number per id of the vocabulary
    """

    def __init__(self, dims: RandomDims, seed: int, token_biases: Sequence[float]) -> None:
        self._seed = seed
        self._token_biases = torch.tensor(token_biases)
        self._width = dims.text.hidden_size
        # Deep models add more to the residual stream; the token's own share of it stays the same.
        self._out_gain = min(1.0, math.sqrt(4 / dims.text.num_hidden_layers))
        signs = torch.randint(2, (self._width,), generator=self._generator("direction"))
        self._direction = (2 * signs - 1).to(torch.float32)

    def pieces(self, spec: TensorSpec) -> Iterator[Tensor]:
        """The tensor as pieces of rows, so that no more than PIECE_NUMBERS are in memory."""
        generator = self._generator(spec.name)
        step = max(1, PIECE_NUMBERS // max(1, math.prod(spec.shape[1:])))
        for first in range(0, spec.shape[0], step):
            shape = (min(step, spec.shape[0] - first), *spec.shape[1:])
            yield self._rows(spec.name, shape, first, generator).to(spec.dtype)

    def _rows(self, name: str, shape: tuple[int, ...], first: int, generator: torch.Generator) -> Tensor:
        if name.endswith("weight_packed"):
            return _random_nibbles(shape, generator)
        if name.endswith("weight_scale"):
            return self._scales(name, shape, generator)
        noise = torch.randn(shape, generator=generator)
        if name == EMBEDDING:
            return noise + self._direction
        if name == HEAD:
            bias = self._token_biases[first : first + shape[0], None] / (KEPT_DIRECTION * self._width)
            return noise * (LOGIT_SPREAD / math.sqrt(self._width)) + bias * self._direction
        if name.endswith("mlp.gate.weight"):
            blind = noise - (noise @ self._direction)[:, None] * self._direction / self._width
            return blind * (ROUTER_SPREAD / math.sqrt(self._width))
        if len(shape) == 1:
            return _vector(name, noise)
        return noise * (self._gain(name) / math.sqrt(math.prod(shape[1:])))

    def _scales(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        inputs = shape[1] * GROUP_SIZE
        spread = torch.empty(shape).uniform_(0.7, 1.3, generator=generator)
        return _five_bits(spread * (self._gain(name) / (INT4_RMS * math.sqrt(inputs))))

    def _gain(self, name: str) -> float:
        if ".o_proj." in name:
            return 2 * self._out_gain  # attention averages over tokens, which makes its values small
        return self._out_gain if ".down_proj." in name else 1.0

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _vector(name: str, noise: Tensor) -> Tensor:
    if name.endswith("e_score_correction_bias"):
        return 0.5 + 0.1 * noise
    return 0.1 * noise if name.endswith(".bias") else 1 + 0.1 * noise  # a norm's weight is near one


def _random_nibbles(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Packed INT4, uniform, with a -8 in each group: so Q4_0, whose scale is its largest weight / -8, can hold it."""
    words = torch.randint(-(1 << 31), 1 << 31, shape, generator=generator)
    place = 4 * torch.randint(8, (*shape[:-1], shape[-1] // 4), generator=generator)
    words[..., ::4] &= ~(0xF << place)
    return words.to(torch.int32)


def _five_bits(values: Tensor) -> Tensor:
    """Rounded to five significant bits, which bf16 and fp16 both hold exactly."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 32).round() / 32, exponent)
