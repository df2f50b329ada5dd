"""Clip each group where the squared error of its rounded values is least.

The idea of searching a shrunk range is OMSE's (Choukroun et al., 2019, arXiv 1902.06822).
"""

import torch
from torch import Tensor

from compression.weights.codes import Grid, fit_range, round_to

SHRINKS = tuple(1 - step / 40 for step in range(17))
"""The fractions of the full range that are tried: 1.0 down to 0.6."""


def choose_range(values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each ``[rows, groups, 1]``, of the best clipped range.

    Args:
        values: float32 ``[rows, groups, width]``.
        grid: the integers to map onto.
    """
    low = values.amin(-1, keepdim=True).clamp_max_(0)
    high = values.amax(-1, keepdim=True).clamp_min_(0)
    best_scale, best_zero = fit_range(low, high, grid)
    best_error = _squared_error(values, best_scale, best_zero, grid)
    for shrink in SHRINKS[1:]:
        scale, zero = fit_range(low * shrink, high * shrink, grid)
        error = _squared_error(values, scale, zero, grid)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _squared_error(values: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    restored = round_to(values, scale, zero, grid).sub_(zero).mul_(scale)
    return restored.sub_(values).square_().sum(-1, keepdim=True)
