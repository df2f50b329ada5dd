"""How much a weight changes when it is quantized, a block of rows at a time."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1024 * 1024


@dataclass(slots=True)
class Distortion:
    """The squared norms of a weight and of its change, summed over blocks of rows."""

    changed: float = 0.0
    exact: float = 0.0

    def add(self, exact: Tensor, served: Tensor) -> None:
        """Count some more rows; ``served`` is float32."""
        values = exact.to(torch.float32)
        self.changed += float((served - values).square_().sum(dtype=torch.float64))
        self.exact += float(values.square().sum(dtype=torch.float64))

    @property
    def relative(self) -> float:
        """Return ‖served - exact‖ / ‖exact‖; 0 for a weight of zeros."""
        return (self.changed / self.exact) ** 0.5 if self.exact else 0.0


def relative_error(weight: Tensor, served: Iterable[Tensor]) -> float:
    """Return the relative change of a weight ``[rows, columns]``.

    ``served`` is what stands for it, float32, as blocks of rows in order.
    """
    distortion = Distortion()
    start = 0
    for block in served:
        distortion.add(weight[start : start + block.shape[0]], block)
        start += block.shape[0]
    return distortion.relative


def block_rows(columns: int) -> int:
    """Return how many rows of that width make one block."""
    return max(1, _BLOCK_ELEMENTS // columns)
