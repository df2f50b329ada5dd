"""Clip each group where the error of the layer's OUTPUT is least, column by column.

The squared error of each weight counts as much as the mean square of the input it meets. The name
is llama.cpp's for these means, gathered in one forward pass (pull request 4861, January 2024).
"""

from torch import Tensor

from compression.weights.codes import Grid
from compression.weights.mse import SHRINKS
from compression.weights.search import best_range


def choose_range(values: Tensor, grid: Grid, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each ``[rows, groups, 1]``, of the best clipped range.

    Args:
        values: float32 ``[rows, groups, width]``.
        grid: the integers to map onto.
        importance: float32 ``[groups, width]``, the mean square of each column's input.
    """
    return best_range(values, grid, shrinks=SHRINKS, importance=importance)
