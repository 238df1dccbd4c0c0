"""The frequencies of the rotary position embedding, stretched by YaRN."""

import math

import torch
from torch import Tensor

from services.checkpoint.config import TextConfig


def yarn_inv_freq(config: TextConfig) -> Tensor:
    """Return the frequency of each pair of rope dimensions, in radians per position.

    Fast pairs (many turns within the original length) keep their frequency theta_i, slow ones are divided by
    `factor`, those between are blended (YaRN, arXiv 2309.00071, section 3.2). Static: the same at every length.

    returns  [qk_rope_head_dim / 2] f32, computed in float64
    """
    dim = config.qk_rope_head_dim
    index = torch.arange(dim // 2, dtype=torch.float64)
    theta = torch.tensor([config.rope_theta ** (-2 * pair / dim) for pair in range(dim // 2)], dtype=torch.float64)
    yarn = config.rope_scaling
    if yarn is None:
        return theta.to(torch.float32)

    def pair_that_turns(times: float) -> float:
        original = yarn.original_max_position_embeddings
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    # With equal ends the division would be by zero; the step is then just above `low`.
    width = max(high - low, 0.001)
    ramp = ((index - low) / width).clamp(0, 1)
    return (theta * (1 - ramp) + theta / yarn.factor * ramp).to(torch.float32)
