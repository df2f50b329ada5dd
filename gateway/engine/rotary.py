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


def turns(architecture: Architecture, max_tokens: int) -> Tensor:
    """Return the ``[max_tokens, 1, head_dim / 2]`` complex64 factors of every position."""
    angles = torch.outer(torch.arange(max_tokens).to(torch.float64), frequencies(architecture))
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).unsqueeze(1)


def spread(turns: Tensor, num_turned: int, num_still: int) -> Tensor:
    """Repeat ``turns [m, 1, d / 2]`` over the turned heads and leave the others as they are.

    The factor of the values is 1, so that one product serves all heads of the fused projection.
    """
    still = turns.new_ones(turns.shape[0], num_still, turns.shape[2])
    return torch.cat([turns.expand(-1, num_turned, -1), still], dim=1)
