"""Round to nearest: the range of each group sets its scale, nothing is searched."""

from torch import Tensor

from compression.weights.codes import Grid, fit_range


def choose_range(values: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, each ``[rows, groups, 1]``, that cover every value.

    Args:
        values: float32 ``[rows, groups, width]``.
        grid: the integers to map onto.
    """
    low = values.amin(-1, keepdim=True).clamp_max_(0)
    high = values.amax(-1, keepdim=True).clamp_min_(0)
    return fit_range(low, high, grid)
