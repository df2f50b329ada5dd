"""Rotary position embedding as a complex product over interleaved pairs.

RoFormer, Su et al. 2021 (arXiv 2104.09864). Hugging Face checkpoints keep the two halves of a head
apart; :func:`interleave` reorders their rows once so that each pair lies together.
"""

import torch
from torch import Tensor

from compression.architecture import Architecture
from compression.frequencies import frequencies


def interleave(num_heads: int, head_dim: int) -> Tensor:
    """Return the row order ``[num_heads * head_dim]`` that joins the pairs (i, i + d/2)."""
    pairs = torch.arange(head_dim).reshape(2, head_dim // 2).t().reshape(-1)
    heads = torch.arange(num_heads).unsqueeze(1) * head_dim
    return (heads + pairs).reshape(-1)


class Rotation:
    """The complex factors of positions, for a model whose texts reach ``max_tokens``.

    Longrope's factors are chosen once, by ``max_tokens``, so that a text is turned alike however
    it is cut into steps. Dynamic scaling follows the length that a text has at its step.
    """

    def __init__(self, architecture: Architecture, max_tokens: int) -> None:
        self._architecture = architecture
        is_dynamic = architecture.rope.kind == "dynamic"
        self._plain = architecture.rope.original_length if is_dynamic else max_tokens
        count = min(self._plain, max_tokens)
        self._turns = self._compute(0, count, length=count)

    def factors(self, start: int, stop: int) -> Tensor:
        """Return ``[stop - start, 1, head_dim / 2]`` complex64 for a text that ends at ``stop``."""
        if stop <= self._plain:
            return self._turns[start:stop]
        return self._compute(start, stop, length=stop)

    def _compute(self, start: int, stop: int, *, length: int) -> Tensor:
        positions = torch.arange(start, stop).to(torch.float64)
        angles = torch.outer(positions, frequencies(self._architecture, length))
        size = torch.full_like(angles, self._architecture.rope.attention_factor)
        return torch.polar(size, angles).to(torch.complex64).unsqueeze(1)


def spread(turns: Tensor, num_turned: int, num_still: int) -> Tensor:
    """Repeat ``turns [m, 1, d / 2]`` over the turned heads and leave the others as they are.

    The factor of the values is 1, so that one product serves all heads of the fused projection.
    """
    still = turns.new_ones(turns.shape[0], num_still, turns.shape[2])
    return torch.cat([turns.expand(-1, num_turned, -1), still], dim=1)
