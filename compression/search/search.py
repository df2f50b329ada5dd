"""The verb: a budget or a size in, the best recipe and the frontier it lies on out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compression.errors import SearchError
from compression.fidelity_record import SliceFidelity
from compression.recipe import Budget, Recipe
from compression.schemes import Int4, Int8, Unquantized
from compression.search.allocation import Allocation, Option
from compression.search.budget import mean_kld, violations, worst_kld
from compression.search.sensitivity import UnitErrors
from compression.search.units import Unit

MAX_TRIALS = 6
"""Artifacts that are built and measured at most."""
_CLOSE = 0.005
"""A search ends where what holds and what does not differ by this share of the bytes."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A recipe that was built and measured."""

    recipe: Recipe
    bytes_in_memory: int
    linear_bytes: int
    """Bytes in memory of the linear weights alone, which the frontier is made of."""
    bytes_stored: int
    linear_bits_stored: float | None
    slices: tuple[SliceFidelity, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome: the chosen trial, every trial and the expected frontier."""

    best: Trial
    trials: tuple[Trial, ...]
    expected: tuple[tuple[int, float], ...]
    """``(bytes of the linear weights in memory, expected KL divergence)``, smallest first."""


def cost_table(
    errors: Sequence[UnitErrors], divergences: Mapping[str, float], menu: Mapping[str, Int4 | Int8]
) -> dict[str, list[Option]]:
    """Return the options of every unit, "none" (bf16) among them.

    Args:
        errors: output errors of every unit under every scheme of the menu.
        divergences: measured KL divergence of each unit, by name, under the menu's first scheme.
        menu: schemes by label.
    """
    first = next(iter(menu))
    table: dict[str, list[Option]] = {}
    for each in errors:
        measured, base = divergences[each.unit.name], each.output_errors[first]
        options = [Option("none", _bytes(each.unit, Unquantized()), 0.0)]
        for label, scheme in menu.items():
            share = each.output_errors[label] / base if base > 0 else 0.0
            options.append(Option(label, _bytes(each.unit, scheme), measured * share))
        table[each.unit.name] = options
    return table


def _bytes(unit: Unit, scheme: Int4 | Int8 | Unquantized) -> int:
    return sum(scheme.memory_bytes(rows, columns, 2) for _, (rows, columns) in unit.shapes)


def within_budget(
    points: Sequence[Allocation], budget: Budget, attempt: Callable[[Allocation], Trial]
) -> Trial:
    """Return the smallest trial that keeps the budget.

    Bisects the frontier, led by what the table expects and corrected by what was measured.

    Raises:
        SearchError: nothing keeps the budget; says what came nearest.
    """
    trials: list[Trial] = []
    low, high = -1, len(points)
    best: Trial | None = None
    ratio = 1.0
    while high - low > 1 and len(trials) < MAX_TRIALS and not _is_close(points, low, high):
        index = _next(points, budget, ratio, low, high)
        trial = attempt(points[index])
        trials.append(trial)
        if points[index].cost > 0:
            ratio = _strain(budget, trial) / points[index].cost
        if violations(budget, trial.slices):
            low = index
        else:
            high, best = index, trial
    if best is None:
        nearest = min(trials, key=lambda trial: _strain(budget, trial))
        broken = ", ".join(violations(budget, nearest.slices))
        raise SearchError(
            f"nothing keeps the budget: the nearest, {nearest.bytes_in_memory / 1e6:.1f} MB, has "
            f"{broken}: allow more"
        )
    return best


def _is_close(points: Sequence[Allocation], low: int, high: int) -> bool:
    if low < 0 or high >= len(points):
        return False
    small, large = points[low].num_bytes, points[high].num_bytes
    return large - small <= _CLOSE * large


def _next(points: Sequence[Allocation], budget: Budget, ratio: float, low: int, high: int) -> int:
    """Return the smallest point between the bounds that is expected to keep the budget."""
    if ratio == 1.0 and budget.kld is None and budget.worst_slice_kld is None:
        return (low + high) // 2
    allowed = 1.0 if ratio != 1.0 else (budget.kld or budget.worst_slice_kld or 0.0)
    for index in range(low + 1, high):
        if points[index].cost * ratio <= allowed:
            return index
    return high - 1


def _strain(budget: Budget, trial: Trial) -> float:
    """Return how much of the budget is used up: above 1 it is broken."""
    used = [0.0]
    if budget.kld is not None:
        used.append(mean_kld(trial.slices) / budget.kld)
    if budget.worst_slice_kld is not None:
        used.append(worst_kld(trial.slices) / budget.worst_slice_kld)
    if budget.top1 is not None and budget.top1 < 1:
        wrong = sum((1 - each.top1) * each.tokens for each in trial.slices)
        used.append(wrong / sum(each.tokens for each in trial.slices) / (1 - budget.top1))
    return max(used)
