"""The search that clipping methods share: shrink each group's range, keep what errs least."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compression.weights.codes import Grid, fit_range


def best_range(
    values: Tensor, grid: Grid, *, shrinks: Sequence[float], importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each ``[rows, groups, 1]``, of the best clipped range.

    Where several err alike, the first of them in ``shrinks`` is taken; where none has an error
    that is a number, the first of all.

    Args:
        values: float32 ``[rows, groups, width]``.
        grid: the integers to map onto.
        shrinks: the fractions of the full range to try, the full one (1) first.
        importance: float32 ``[groups, width]``, the weight of each squared error; None for 1.
    """
    low = values.amin(-1, keepdim=True).clamp_max_(0)
    high = values.amax(-1, keepdim=True).clamp_min_(0)
    # Ranges are small beside the values, so all of them are fitted at once: a call costs more
    # than its arithmetic.
    fractions = torch.tensor(shrinks).view(-1, 1, 1, 1)
    scales, zeros = fit_range(low * fractions, high * fractions, grid)
    errors = torch.empty_like(scales)
    room = torch.empty_like(values)
    for error, scale, zero in zip(errors, scales, zeros, strict=True):
        torch.sum(_squares(values, scale, zero, grid, importance, room), -1, True, out=error)
    best = errors.nan_to_num_(nan=float("inf")).argmin(0, keepdim=True)
    return scales.gather(0, best).squeeze(0), zeros.gather(0, best).squeeze(0)


def _squares(
    values: Tensor, scale: Tensor, zero: Tensor, grid: Grid, importance: Tensor | None, room: Tensor
) -> Tensor:
    """Write the squared errors of the rounded values into ``room``, and return it."""
    rounded = torch.div(values, scale, out=room).round_().add_(zero).clamp_(grid.low, grid.high)
    squares = rounded.sub_(zero).mul_(scale).sub_(values).square_()
    return squares if importance is None else squares.mul_(importance)
