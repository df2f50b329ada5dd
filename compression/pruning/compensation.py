"""The columns that stay take over what removed ones contributed, as far as they can predict it."""

import torch
from torch import Tensor

_RIDGE = 0.01
"""Of the mean square of an input: keeps the refit from following chance in the text."""


def refit(
    weight: Tensor, bias: Tensor | None, kept: Tensor, second_moment: Tensor, *, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the weight [N, k] and bias [N] that act on the ``kept`` [k] of K input columns.

    ``second_moment`` [K + 1, K + 1] is the mean of x xᵀ with a 1 behind each input x, so that a
    bias is the weight of one more column. The result minimizes E‖W x - W' x_kept‖² plus a ridge on
    W' - W_kept: the least-squares form of the compensation by means in FLAP (An et al. 2024,
    arXiv 2312.11983), which is what remains of it where columns that stay predict nothing.
    """
    columns = weight.shape[1]
    start = torch.zeros(weight.shape[0]) if bias is None else bias
    whole = torch.cat([weight, start.unsqueeze(1)], dim=1)
    removed = complement(kept, columns)
    ridge = _RIDGE * second_moment.diagonal()[kept].mean().expand(len(kept)).clamp_min(1e-12)
    if with_bias:
        kept = torch.cat([kept, torch.tensor([columns])])
        ridge = torch.cat([ridge, torch.tensor([1e-6])])
    square = second_moment[kept][:, kept] + torch.diag(ridge)
    lost = second_moment[kept][:, removed] @ whole[:, removed].T
    refitted = whole[:, kept] + torch.cholesky_solve(lost, torch.linalg.cholesky(square)).T
    if with_bias:
        return refitted[:, :-1].contiguous(), refitted[:, -1].contiguous()
    return refitted, bias


def complement(kept: Tensor, columns: int) -> Tensor:
    """Return the indices below ``columns`` that ``kept`` lacks, ascending."""
    is_removed = torch.ones(columns, dtype=torch.bool)
    is_removed[kept] = False
    return is_removed.nonzero().flatten()
