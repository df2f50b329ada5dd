"""The angles by which rotary position embedding turns a key per position.

RoFormer, Su et al. 2021 (arXiv 2104.09864).
"""

import math

import torch
from torch import Tensor

from compression.architecture import Architecture
from compression.rope import Rope


def frequencies(architecture: Architecture, length: int = 1) -> Tensor:
    """Return the ``[head_dim / 2]`` angles per position, float64, with the checkpoint's scaling.

    ``length`` counts positions; dynamic and longrope scaling depend on it beyond the original
    length of the model.
    """
    rope = architecture.rope
    size = architecture.head_dim
    match rope.kind:
        case "linear":
            return _inverse(rope.theta, size) / rope.factor
        case "dynamic":
            return _dynamic(rope, size, length)
        case "llama3":
            return _llama3(_inverse(rope.theta, size), rope)
        case "yarn":
            return _yarn(_inverse(rope.theta, size), rope)
        case "longrope":
            is_long = length > rope.original_length
            factors = rope.long_factors if is_long else rope.short_factors
            return _inverse(rope.theta, size) / torch.tensor(factors, dtype=torch.float64)
        case _:
            return _inverse(rope.theta, size)


def _inverse(theta: float, size: int) -> Tensor:
    exponents = torch.arange(0, size, 2, dtype=torch.float64)
    return torch.pow(theta, -exponents / size)


def _dynamic(rope: Rope, size: int, length: int) -> Tensor:
    """Raise the base with the length of the text (NTK-aware scaling, emozilla 2023)."""
    stretch = rope.factor * max(length, rope.original_length) / rope.original_length
    return _inverse(rope.theta * (stretch - (rope.factor - 1)) ** (size / (size - 2)), size)


def _llama3(inverse: Tensor, rope: Rope) -> Tensor:
    """Slow the long wavelengths down by ``factor``, with a smooth band between (Llama 3.1)."""
    low, high = rope.low_freq_factor, rope.high_freq_factor
    turned = rope.original_length * inverse / (2 * math.pi)
    smooth = ((turned - low) / (high - low)).clamp(0, 1)
    return inverse * ((1 - smooth) / rope.factor + smooth)


def _yarn(inverse: Tensor, rope: Rope) -> Tensor:
    """Slow channels down by ``factor`` along a ramp over their numbers (arXiv 2309.00071)."""
    count = inverse.shape[0]

    def channel(turns: float) -> float:
        """Return which channel turns that often within the original length."""
        return count * math.log(rope.original_length / (turns * 2 * math.pi)) / math.log(rope.theta)

    low, high = channel(rope.beta_fast), channel(rope.beta_slow)
    if rope.is_truncated:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * count - 1)
    width = high - low if high != low else 0.001
    slowed = ((torch.arange(count, dtype=torch.float64) - low) / width).clamp(0, 1)
    return inverse * (slowed / rope.factor + (1 - slowed))
