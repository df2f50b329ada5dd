"""The search that clipping methods share: shrink each group's range, keep what errs least."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compression.weights.codes import Grid, fit_range, round_to


def best_range(
    values: Tensor, grid: Grid, *, shrinks: Sequence[float], importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each ``[rows, groups, 1]``, of the best clipped range.

    Args:
        values: float32 ``[rows, groups, width]``.
        grid: the integers to map onto.
        shrinks: the fractions of the full range to try, the full one (1) among them.
        importance: float32 ``[groups, width]``, the weight of each squared error; None for 1.
    """
    low = values.amin(-1, keepdim=True).clamp_max_(0)
    high = values.amax(-1, keepdim=True).clamp_min_(0)
    best_scale, best_zero = fit_range(low, high, grid)
    best_error = torch.full_like(best_scale, float("inf"))
    for shrink in shrinks:
        scale, zero = fit_range(low * shrink, high * shrink, grid)
        error = _squared_error(values, scale, zero, grid, importance)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _squared_error(
    values: Tensor, scale: Tensor, zero: Tensor, grid: Grid, importance: Tensor | None
) -> Tensor:
    squares = round_to(values, scale, zero, grid).sub_(zero).mul_(scale).sub_(values).square_()
    if importance is not None:
        squares.mul_(importance)
    return squares.sum(-1, keepdim=True)
