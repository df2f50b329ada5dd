"""What a calibration text says about the input of a linear layer."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from compression.weights.gptq import DAMPING, Feedback, make_feedback

STRENGTH = 0.5
"""The part of the error so far that a layer is asked to take back."""
EMBEDDED = 0.02
"""What a tied table's error counts in every direction, as a share of the mean square that the
output head reads."""


@dataclass(frozen=True)
class InputStatistics:
    """The second moments of a layer's input x ``[K]`` over some tokens."""

    mean_square: Tensor
    """float32 ``[K]``: the mean of x², the importance of each column."""
    second_moment: Tensor | None
    """float32 ``[K, K]``: the mean of x xᵀ; None where only its diagonal was gathered."""
    tokens: int
    held_out: Tensor | None = None
    """float32 ``[K, K]``: the second moments over other tokens, on which errors are measured."""
    difference: Tensor | None = None
    """float32 ``[K, K]``: the mean of (x* - x) xᵀ, where x* is the full model's input; None where
    x is that."""

    @cached_property
    def feedback(self) -> Feedback:
        """Return what GPTQ needs; modules that read the same input share it.

        Raises:
            ValueError: only mean squares were gathered.
        """
        if self.second_moment is None:
            raise ValueError("GPTQ needs the whole second moments of the layer's input")
        return make_feedback(self.second_moment)

    def target(self, weight: Tensor) -> Tensor:
        """Return the float32 weight ``[rows, K]`` whose rounding is asked for.

        It is W plus a part of what takes W x nearest to W x*: ``W E[(x* - x) xᵀ] E[x xᵀ]⁻¹``.
        """
        exact = weight.to(torch.float32)
        return exact if self._correction is None else exact + exact @ self._correction

    @cached_property
    def _correction(self) -> Tensor | None:
        if self.difference is None or self.second_moment is None:
            return None
        damped = self.second_moment.clone()
        mean = damped.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        damped.diagonal().add_(DAMPING * mean)
        solved = torch.cholesky_solve(self.difference.T, torch.linalg.cholesky(damped))
        return STRENGTH * solved.T

    def of_tied_table(self) -> "InputStatistics":
        """Return what an output head is to be rounded by that is the input embedding too.

        An embedding's errors enter the model whatever their direction, and what would take back
        the layers' errors at the end would be an error at the beginning.

        Raises:
            ValueError: only mean squares were gathered.
        """
        if self.second_moment is None:
            raise ValueError("a tied table needs the whole second moments of the head's input")
        moment = self.second_moment.clone()
        moment.diagonal().add_(EMBEDDED * moment.diagonal().mean())
        return replace(self, second_moment=moment, difference=None)

    def output_error(self, weight: Tensor, restored: Tensor) -> float:
        """Return E‖(W' - W) x‖² / E‖W x‖² for two weights ``[rows, K]``; 0 for a silent layer.

        See :meth:`output_powers`.
        """
        changed, power = self.output_powers(weight, restored)
        return changed / power if power > 0 else 0.0

    def output_powers(self, weight: Tensor, restored: Tensor) -> tuple[float, float]:
        """Return E‖(W' - W) x‖² and E‖W x‖² for two weights ``[rows, K]``.

        W is what was to be rounded, see :meth:`target`.

        Measured on the tokens held out, where there are some. Without second moments the inputs
        are taken as uncorrelated.
        """
        exact = weight.to(torch.float32)
        return self._power(restored.to(torch.float32) - exact), self._power(exact)

    def _power(self, weight: Tensor) -> float:
        moment = self.second_moment if self.held_out is None else self.held_out
        if moment is None:
            return float((weight.square() @ self.mean_square).sum())
        return float(((weight @ moment) * weight).sum())


class MomentSum:
    """Collects the second moments of rows as they come, or only their diagonal."""

    def __init__(self, columns: int, *, whole: bool) -> None:
        self._squares = torch.zeros(columns)
        self._moments = torch.zeros(columns, columns) if whole else None
        self._rows = 0

    def add(self, rows: Tensor) -> None:
        """Take in float32 ``[n, K]``."""
        if self._moments is None:
            self._squares += rows.square().sum(0)
        else:
            self._moments.addmm_(rows.T, rows)
        self._rows += rows.shape[0]

    def statistics(self, held_out: "MomentSum | None" = None) -> InputStatistics:
        """Return the means over all rows so far, of which there must be some."""
        if self._moments is None:
            return InputStatistics(self._squares / self._rows, None, self._rows)
        moment = self._moments / self._rows
        other = None if held_out is None else held_out.statistics().second_moment
        return InputStatistics(moment.diagonal(), moment, self._rows, other)


class PairedMoments:
    """Second moments of inputs x, and how far x* of the full model lies from them."""

    def __init__(self, columns: int) -> None:
        self._moments = torch.zeros(columns, columns)
        self._differences = torch.zeros(columns, columns)
        self._rows = 0

    def add(self, rows: Tensor, wanted: Tensor) -> None:
        """Take in x and x*, each float32 ``[n, K]``."""
        self._moments.addmm_(rows.T, rows)
        self._differences.addmm_((wanted - rows).T, rows)
        self._rows += rows.shape[0]

    def statistics(self, held_out: "PairedMoments | None" = None) -> InputStatistics:
        """Return the means over all rows so far, of which there must be some."""
        moment = self._moments / self._rows
        other = None if held_out is None else held_out._moments / held_out._rows
        return InputStatistics(
            moment.diagonal(), moment, self._rows, other, self._differences / self._rows
        )
