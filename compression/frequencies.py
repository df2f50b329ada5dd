"""The angles by which rotary position embedding turns a key per position.

RoFormer, Su et al. 2021 (arXiv 2104.09864).
"""

import math

import torch
from torch import Tensor

from compression.architecture import Architecture, Rope


def frequencies(architecture: Architecture) -> Tensor:
    """Return the ``[head_dim / 2]`` angles per position, float64, with the checkpoint's scaling."""
    rope = architecture.rope
    exponents = torch.arange(0, architecture.head_dim, 2, dtype=torch.float64)
    inverse = torch.pow(rope.theta, -exponents / architecture.head_dim)
    match rope.kind:
        case "linear":
            return inverse / rope.factor
        case "llama3":
            return _llama3(inverse, rope)
        case _:
            return inverse


def _llama3(inverse: Tensor, rope: Rope) -> Tensor:
    """Slow the long wavelengths down by ``factor``, with a smooth band between (Llama 3.1)."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turned = rope.original_max_position_embeddings * inverse / (2 * math.pi)
    smooth = ((turned - low) / (high - low)).clamp(0, 1)
    return inverse * ((1 - smooth) / rope.factor + smooth)
