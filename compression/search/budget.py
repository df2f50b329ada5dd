"""The fidelity that a search must keep, as a user writes it."""

import re
from collections.abc import Sequence

from compression.errors import SearchError
from compression.fidelity_record import SliceFidelity
from compression.recipe import Budget

_TERM = re.compile(r"^(?P<name>[a-z0-9_]+)\s*(?P<sign><=|>=)\s*(?P<value>[0-9.eE+-]+)$")
_SIGNS = {"kld": "<=", "worst_slice_kld": "<=", "top1": ">="}


def parse_budget(text: str) -> Budget:
    """Parse ``kld<=0.05, worst_slice_kld<=0.1, top1>=0.9`` (any of them).

    Raises:
        SearchError: names the term and what is allowed.
    """
    limits: dict[str, float] = {}
    for term in (part.strip() for part in text.split(",")):
        match = _TERM.match(term)
        sign = _SIGNS.get(match["name"]) if match else None
        if match is None or sign != match["sign"]:
            raise SearchError(
                f"--budget {term!r} is not understood: write terms such as kld<=0.05, "
                "worst_slice_kld<=0.1 or top1>=0.9, with commas between them"
            )
        if match["name"] in limits:
            raise SearchError(f"--budget {text!r} has two limits for {match['name']}: give one")
        limits[match["name"]] = _number(match["value"], term)
    try:
        return Budget(**limits)
    except ValueError as error:
        reason = str(error).splitlines()[2].strip()
        raise SearchError(f"--budget {text!r} is impossible: {reason}") from None


def _number(value: str, term: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise SearchError(f"--budget {term!r}: {value!r} is no number") from None


def mean_kld(slices: Sequence[SliceFidelity]) -> float:
    """Return the mean over slices of the mean KL divergence, nats."""
    return sum(each.kld_mean for each in slices) / len(slices)


def worst_kld(slices: Sequence[SliceFidelity]) -> float:
    """Return the mean KL divergence of the worst slice, nats."""
    return max(each.kld_mean for each in slices)


def pooled_top1(slices: Sequence[SliceFidelity]) -> float:
    """Return the agreement of the top token over all positions."""
    return sum(each.top1 * each.tokens for each in slices) / sum(each.tokens for each in slices)


def violations(budget: Budget, slices: Sequence[SliceFidelity]) -> list[str]:
    """Return what the measured fidelity breaks, a phrase each; empty where the budget is kept.

    A figure that is no number keeps no limit.
    """
    found = []
    if budget.kld is not None and not ((mean := mean_kld(slices)) <= budget.kld):
        found.append(f"kld {mean:.4f} > {budget.kld:g}")
    if budget.worst_slice_kld is not None and not (
        (worst := worst_kld(slices)) <= budget.worst_slice_kld
    ):
        name = max(slices, key=lambda each: each.kld_mean).name
        found.append(f"worst_slice_kld {worst:.4f} ({name}) > {budget.worst_slice_kld:g}")
    if budget.top1 is not None and not ((agreement := pooled_top1(slices)) >= budget.top1):
        found.append(f"top1 {agreement:.4f} < {budget.top1:g}")
    return found
