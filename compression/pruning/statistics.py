"""What a calibration text puts into a projection whose inputs will be removed in part."""

import torch
from torch import Tensor
from torch.nn import functional


class Moments:
    """Second moments of inputs x [K] with a 1 behind each, so that they hold the means too."""

    def __init__(self, columns: int) -> None:
        self._sum = torch.zeros(columns + 1, columns + 1)
        self._rows = 0

    def add(self, rows: Tensor) -> None:
        """Take in float32 [n, K]."""
        padded = functional.pad(rows, (0, 1), value=1.0)
        self._sum.addmm_(padded.T, padded)
        self._rows += rows.shape[0]

    def matrix(self) -> Tensor:
        """Return float32 [K + 1, K + 1]: the mean of (x, 1)(x, 1)ᵀ over the rows so far."""
        return self._sum / self._rows


def output_error(change: Tensor, weight: Tensor, second_moment: Tensor) -> float:
    """Return E‖D x‖² / E‖W x‖² for two matrices [N, n] over inputs of that second moment [n, n].

    0 where W gives nothing.
    """
    power = float(((weight @ second_moment) * weight).sum())
    lost = float(((change @ second_moment) * change).sum())
    return max(lost, 0.0) / power if power > 0 else 0.0
