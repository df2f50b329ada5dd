"""One layer's removal: what stays, and the projections that act on what stays."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compression.pruning.compensation import refit
from compression.pruning.record import OutputError
from compression.pruning.selection import KeptHeads
from compression.pruning.statistics import output_error


@dataclass(frozen=True, slots=True)
class Projection:
    """``o_proj`` or ``down_proj`` on the input columns that stay."""

    kept: Tensor
    """int64 [k]: source columns, ascending."""
    weight: Tensor
    """[N, k] in the checkpoint's dtype."""
    bias: Tensor | None
    """[N], None where the source has none and none was needed."""
    error: OutputError | None

    def masked(self, columns: int) -> Tensor:
        """Return the float32 weight [N, columns] that does the same on all columns."""
        weight = torch.zeros(self.weight.shape[0], columns)
        weight[:, self.kept] = self.weight.to(torch.float32)
        return weight


@dataclass(frozen=True, slots=True)
class LayerCut:
    """What stays of one layer; None where a half stays whole."""

    heads: KeptHeads | None
    output: Projection | None
    down: Projection | None


def slice_projection(
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    moments: Tensor | None,
    *,
    compensate: bool,
    with_bias: bool,
) -> Projection:
    """Return a projection [N, K] on the columns ``kept``, refitted where ``compensate`` says so.

    ``weight`` and ``bias`` are as stored; ``moments`` [K + 1, K + 1] of
    :class:`compression.pruning.statistics.Moments` are needed to compensate.
    """
    sliced = weight[:, kept].contiguous()
    if moments is None:
        return Projection(kept, sliced, bias, error=None)
    plain = Projection(kept, sliced, bias, error=None)
    removed = _error(plain, weight, bias, moments)
    if not compensate:
        return replace(plain, error=OutputError(removed=removed, compensated=removed))
    exact_bias = None if bias is None else bias.to(torch.float32)
    refitted, new_bias = refit(
        weight.to(torch.float32), exact_bias, kept, moments, with_bias=with_bias
    )
    stored_bias = None if new_bias is None else new_bias.to(weight.dtype)
    result = Projection(kept, refitted.to(weight.dtype), stored_bias, error=None)
    compensated = _error(result, weight, bias, moments)
    return replace(result, error=OutputError(removed=removed, compensated=compensated))


def _error(projection: Projection, weight: Tensor, bias: Tensor | None, moments: Tensor) -> float:
    """Return the relative error of the projection's output on the inputs of those moments."""
    rows, columns = weight.shape
    exact = torch.cat([weight.to(torch.float32), _column(bias, rows)], dim=1)
    kept = torch.cat([projection.masked(columns), _column(projection.bias, rows)], dim=1)
    return output_error(exact - kept, exact, moments)


def _column(bias: Tensor | None, rows: int) -> Tensor:
    return torch.zeros(rows, 1) if bias is None else bias.to(torch.float32).unsqueeze(1)
