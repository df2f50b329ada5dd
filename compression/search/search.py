"""The verb: a budget or a size in, the best recipe and the frontier it lies on out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compression.errors import SearchError
from compression.fidelity_record import SliceFidelity
from compression.recipe import Budget, Recipe
from compression.search.allocation import Allocation, Option
from compression.search.budget import mean_kld, pooled_top1, violations, worst_kld

MAX_TRIALS = 6
"""Artifacts that are built and measured at most."""
_CLOSE = 0.005
"""A search ends where no more than this share of the bytes is left to save."""
_JOINT = 0.5
"""Measured divergence over the sum of unit costs, before anything was measured: feedback from unit
to unit takes errors back."""
_WORST = 1.5
"""Divergence of the worst slice over the mean, before anything was measured."""
_DISAGREEMENT = 0.6
"""1 - top-1 agreement over the root of the divergence: from 0.028 at 0.0022 nats to 0.26 at 0.2."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A recipe that was built and measured."""

    recipe: Recipe
    bytes_in_memory: int
    matrix_bytes: int
    """Bytes in memory of linear weights, embedding and head, which the frontier is made of."""
    expected_kld: float
    """The sum of unit costs, nats."""
    bytes_stored: int
    linear_bits_stored: float | None
    slices: tuple[SliceFidelity, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome: the chosen trial, every trial and the expected frontier."""

    best: Trial
    trials: tuple[Trial, ...]
    expected: tuple[tuple[int, float], ...]
    """``(bytes of all matrices in memory, expected KL divergence)``, smallest first."""
    units: Mapping[str, Sequence[Option]]
    """What each unit may be stored as, and what that costs."""


def within_budget(
    points: Sequence[Allocation], budget: Budget, attempt: Callable[[Allocation], Trial]
) -> Trial:
    """Return the smallest trial that keeps the budget.

    Bisects the frontier, led by a line through what was measured, until the line expects next to
    nothing of a smaller one. Where half of the trials broke the budget, the largest point is tried:
    it tells whether anything keeps it, and what remains where no unit is rounded.

    Raises:
        SearchError: nothing keeps the budget; says what came nearest.
    """
    trials: dict[int, Trial] = {}
    low, high = -1, len(points)
    while high - low > 1 and len(trials) < MAX_TRIALS and not _is_close(points, low, high):
        if high == len(points) and len(trials) == MAX_TRIALS // 2:
            index = high - 1
        else:
            index = _next(points, budget, trials, low, high)
        if _is_close(points, index, high):
            break
        trials[index] = attempt(points[index])
        if violations(budget, trials[index].slices):
            low = index
        else:
            high = index
    if high in trials:
        return trials[high]
    nearest = min(trials.values(), key=lambda each: (_strain(budget, each), mean_kld(each.slices)))
    broken = ", ".join(violations(budget, nearest.slices))
    raise SearchError(
        f"nothing keeps the budget: the nearest, {nearest.bytes_in_memory / 1e6:.1f} MB, has "
        f"{broken}: allow more"
    )


def _is_close(points: Sequence[Allocation], low: int, high: int) -> bool:
    if low < 0 or high >= len(points):
        return False
    small, large = points[low].num_bytes, points[high].num_bytes
    return large - small <= _CLOSE * large


def _next(
    points: Sequence[Allocation],
    budget: Budget,
    trials: Mapping[int, Trial],
    low: int,
    high: int,
) -> int:
    """Return the smallest point between the bounds that is expected to keep the budget."""
    affordable = _affordable_cost(points, budget, trials, low, high)
    if affordable is None:
        return (low + high) // 2
    for index in range(low + 1, high):
        if points[index].cost <= affordable:
            return index
    return high - 1


def _affordable_cost(
    points: Sequence[Allocation],
    budget: Budget,
    trials: Mapping[int, Trial],
    low: int,
    high: int,
) -> float | None:
    """Return the expected cost at which the budget is just kept; None where nothing tells it.

    Of the trials the two that lie nearest to the bounds are taken, on both sides where there are
    two sides, and the first trial alone as a share of its cost.
    """
    if not trials:
        return _first_cost(budget)
    nearest = sorted(trials, key=lambda index: min(abs(index - low), abs(index - high)))[:2]
    costs = [points[index].cost for index in nearest]
    strains = [_strain(budget, trials[index]) for index in nearest]
    if len(nearest) == 1:
        costs, strains = [0.0, *costs], [0.0, *strains]
    slope = (strains[1] - strains[0]) / (costs[1] - costs[0]) if costs[0] != costs[1] else 0.0
    if not 0 < slope < math.inf:
        return None
    return costs[0] + (1 - strains[0]) / slope


def _first_cost(budget: Budget) -> float:
    """Return the expected cost to begin with."""
    divergences = []
    if budget.kld is not None:
        divergences.append(budget.kld)
    if budget.worst_slice_kld is not None:
        divergences.append(budget.worst_slice_kld / _WORST)
    if budget.top1 is not None:
        divergences.append(((1 - budget.top1) / _DISAGREEMENT) ** 2)
    return min(divergences) / _JOINT


def _strain(budget: Budget, trial: Trial) -> float:
    """Return how much of the budget is used up: above 1 it is broken."""
    used = [0.0]
    if budget.kld is not None:
        used.append(mean_kld(trial.slices) / budget.kld)
    if budget.worst_slice_kld is not None:
        used.append(worst_kld(trial.slices) / budget.worst_slice_kld)
    if budget.top1 is not None:
        wrong, allowed = 1 - pooled_top1(trial.slices), 1 - budget.top1
        if wrong > 0:  # squared, it grows with the divergence as the others do
            used.append((wrong / allowed) ** 2 if allowed > 0 else math.inf)
    return max(used)
