"""Quantized weights before they are packed: integer codes with their scales and zero points."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compression.schemes import Grouped


@dataclass(frozen=True, slots=True)
class Codes:
    """The integer form of one weight ``[rows, columns]``, in groups of equal width along a row.

    ``weight ≈ (codes - zeros) * scales``, with ``zeros`` taken as 0 where it is None.
    """

    codes: Tensor
    """int8 ``[rows, columns]``: -127…127 (int8), 0…15 (int4), 0…31 (int5)."""
    scales: Tensor
    """bf16 ``[rows, groups]``."""
    zeros: Tensor | None
    """int8 ``[rows, groups]`` in the range of the codes for int4 and int5; None for int8."""
    bits: int
    """Of a code: 8, 5 or 4."""

    @property
    def label(self) -> str:
        """Return the scheme that these codes really have, as reports name it."""
        if self.zeros is None:
            return "int8-rows"
        width = self.codes.shape[1] // self.scales.shape[1]
        middle = 1 << (self.bits - 1)
        kind = "sym" if bool((self.zeros == middle).all()) else "asym"
        return f"int{self.bits}-g{width}-{kind}"

    def dequantize(self) -> Tensor:
        """Return the float32 ``[rows, columns]`` weight that these codes stand for."""
        rows, groups = self.scales.shape
        values = self.codes.reshape(rows, groups, -1).to(torch.float32)
        if self.zeros is not None:
            values = values - self.zeros.unsqueeze(-1).to(torch.float32)
        values = values * self.scales.unsqueeze(-1).to(torch.float32)
        return values.reshape(rows, -1)

    def select_rows(self, rows: Tensor) -> "Codes":
        """Return the codes with their rows reordered by the index ``rows``."""
        zeros = None if self.zeros is None else self.zeros[rows]
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], zeros=zeros)


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers a scheme can use and where its zero may lie."""

    low: int
    high: int
    zero: int | None
    """The fixed zero point; None where each group has its own."""


INT8 = Grid(low=-127, high=127, zero=0)


def grouped_grid(scheme: Grouped) -> Grid:
    """Return the unsigned codes of a scheme in groups; symmetric ones have their zero midway."""
    middle = 1 << (scheme.bits - 1)
    return Grid(low=0, high=2 * middle - 1, zero=middle if scheme.symmetric else None)


def fit_range(low: Tensor, high: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point (both float32) that map ``[low, high]`` onto ``grid``.

    ``low`` ≤ 0 ≤ ``high`` elementwise. The scale is already rounded to bf16, as it will be stored,
    so that the codes are chosen for the scale they will be multiplied with.
    """
    if grid.zero is None:
        scale = stored_scale((high - low) / (grid.high - grid.low))
        zero = torch.round(grid.low - low / scale).clamp_(grid.low, grid.high)
        return scale, zero
    reach = min(grid.high - grid.zero, grid.zero - grid.low)
    scale = stored_scale(torch.maximum(high, -low) / reach)
    return scale, torch.full_like(scale, grid.zero)


def stored_scale(scale: Tensor) -> Tensor:
    """Round a scale to bf16 and keep it away from zero; float32 out."""
    tiny = torch.finfo(torch.bfloat16).tiny
    return scale.clamp_min(tiny).to(torch.bfloat16).to(torch.float32)


def round_to(values: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Return the float32 codes nearest to ``values [rows, groups, width]`` on ``grid``."""
    return (values / scale).round_().add_(zero).clamp_(grid.low, grid.high)
