"""Random weights that behave like a trained model's: healthy activations, busy experts, varied output.

Every linear preserves the magnitude of its input (standard deviation gain / sqrt(in)). One direction of the residual
stream, `u`, is nonzero in every 16th number. Every embedding contains it, and the head reads it to make single tokens
likely or rare. The norms before the layers suppress it almost entirely, because a constant in their input would favour
the same experts and tokens for every text.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from services.checkpoint.architecture import GROUP_SIZE
from services.local.random_checkpoint.dims import RandomDims
from services.model.tensor_names import EMBEDDING, HEAD, TensorSpec

PIECE_NUMBERS = 1 << 24  # most numbers in memory at once, 64 MiB in fp32
LOGIT_SPREAD = 2.5  # standard deviation of the logits of ordinary tokens
KEPT_DIRECTION = 0.35  # size of `u` in the normalised output of the last layer, measured
DIRECTION_STEP = 16
HIDDEN = 2.0**-5  # factor by which layers read and write the direction
WRITERS = ("o_proj.weight", "down_proj.weight", "down_proj.weight_scale")
QUERY_GAIN = 4.0  # sharpens attention: an average over many tokens would be the same at every position
ROUTER_SPREAD = 1.5  # standard deviation of router logits
INT4_RMS = 4.78  # of -8..7, uniform except for one -8 in each group


class RandomWeights:
    """Makes the tensors of a random checkpoint, each from the seed and its own name, in any order.

    token_biases  added to each token's logit, one number per id of the vocabulary
    """

    def __init__(self, dims: RandomDims, seed: int, token_biases: Sequence[float]) -> None:
        self._seed = seed
        self._token_biases = torch.tensor(token_biases)
        self._width = dims.text.hidden_size
        # Deep models have more additions to the residual stream; smaller ones keep the embedding's share the same.
        self._out_gain = min(1.0, math.sqrt(4 / dims.text.num_hidden_layers))
        self._direction = torch.zeros(self._width)
        self._direction[::DIRECTION_STEP] = math.sqrt(DIRECTION_STEP)

    def pieces(self, spec: TensorSpec) -> Iterator[Tensor]:
        """Yield the tensor in pieces of rows with at most PIECE_NUMBERS numbers, to bound memory."""
        generator = self._generator(spec.name)
        step = max(1, PIECE_NUMBERS // max(1, math.prod(spec.shape[1:])))
        for first in range(0, spec.shape[0], step):
            shape = (min(step, spec.shape[0] - first), *spec.shape[1:])
            yield self._rows(spec.name, shape, first, generator).to(spec.dtype)

    def _rows(self, name: str, shape: tuple[int, ...], first: int, generator: torch.Generator) -> Tensor:
        if name.endswith("weight_packed"):
            return _random_nibbles(shape, generator)
        if name.endswith("weight_scale"):
            return self._scales(name, shape, first, generator)
        noise = torch.randn(shape, generator=generator)
        if name in (EMBEDDING, HEAD):
            return self._edge(name, noise, first)
        if len(shape) == 1:
            return self._vector(name, noise)
        rows = noise * (self._gain(name) / math.sqrt(math.prod(shape[1:])))
        return self._away_from_direction(rows, first) if name.endswith(WRITERS) else rows

    def _edge(self, name: str, noise: Tensor, first: int) -> Tensor:
        if name == EMBEDDING:
            return noise + self._direction
        bias = self._token_biases[first : first + noise.shape[0], None] / (KEPT_DIRECTION * self._width)
        return noise * (LOGIT_SPREAD / math.sqrt(self._width)) + bias * self._direction

    def _vector(self, name: str, noise: Tensor) -> Tensor:
        if name.endswith("e_score_correction_bias"):
            return 0.5 + 0.1 * noise
        if name.endswith(".bias"):
            return 0.1 * noise
        weight = 1 + 0.1 * noise  # a norm's
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            weight[::DIRECTION_STEP] *= HIDDEN
        return weight

    def _scales(self, name: str, shape: tuple[int, ...], first: int, generator: torch.Generator) -> Tensor:
        inputs = shape[1] * GROUP_SIZE
        spread = torch.empty(shape).uniform_(0.7, 1.3, generator=generator)
        scales = spread * (self._gain(name) / (INT4_RMS * math.sqrt(inputs)))
        return _five_bits(self._away_from_direction(scales, first) if name.endswith(WRITERS) else scales)

    def _away_from_direction(self, rows: Tensor, first: int) -> Tensor:
        """Scale down the rows of a matrix that would write into `u`."""
        rows[-first % DIRECTION_STEP :: DIRECTION_STEP] *= HIDDEN
        return rows

    def _gain(self, name: str) -> float:
        if ".q_b_proj." in name:
            return QUERY_GAIN
        if name.endswith("mlp.gate.weight"):
            return ROUTER_SPREAD
        return self._out_gain if name.endswith(WRITERS) else 1.0

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _random_nibbles(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return uniform packed INT4 with a -8 in each group, so that Q4_0, with scale = largest weight / -8, is exact."""
    words = torch.randint(-(1 << 31), 1 << 31, shape, generator=generator)
    place = 4 * torch.randint(8, (*shape[:-1], shape[-1] // 4), generator=generator)
    words[..., ::4] &= ~(0xF << place)
    return words.to(torch.int32)


def _five_bits(values: Tensor) -> Tensor:
    """Round to five significant bits, which bf16 and fp16 both represent exactly."""
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 32).round() / 32, exponent)
