"""Clip each group where the squared error of its rounded values is least.

The idea of searching a shrunk range is OMSE's (Choukroun et al., 2019, arXiv 1902.06822).
"""

from torch import Tensor

from compression.weights.codes import Grid
from compression.weights.search import best_range

SHRINKS = tuple(1 - step / 40 for step in range(17))
"""The fractions of the full range that are tried: 1.0 down to 0.6."""


def choose_range(values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each ``[rows, groups, 1]``, of the best clipped range.

    Args:
        values: float32 ``[rows, groups, width]``.
        grid: the integers to map onto.
    """
    return best_range(values, grid, shrinks=SHRINKS, importance=None)
