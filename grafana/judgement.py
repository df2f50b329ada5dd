"""Verdicts in PromQL."""

from grafana.query import ratio, series

DRIFT, STALE, LEARNING = 2, 3, 0


def worst_verdict(*, is_active_only: bool = True) -> str:
    """Return each variant's verdict over all its traffic; of several gateways the worst.

    Drift is worse than stale, stale than learning, whatever their numbers.
    """
    state = series("drift_state", 'slice="all"')
    active = f" and on (instance, model, variant) ({series('active_variant')} == 1)"
    kept = f"({state}{active})" if is_active_only else state
    ranked = [f"max by (model, variant) ({kept} == {each})" for each in (DRIFT, STALE, LEARNING)]
    return " or ".join((*ranked, f"max by (model, variant) ({kept})"))


def worst_slices() -> str:
    """Return for each slice how its divergence is at least, as a multiple of its tolerance."""
    return _over_tolerance("model, variant, slice")


def all_traffic() -> str:
    """Return the same for all traffic of each variant."""
    return _over_tolerance("model, variant", 'slice="all"')


def _over_tolerance(by: str, *matchers: str) -> str:
    lower = series("drift_mean_lower_nats", *matchers)
    tolerance = series("drift_tolerance_nats", *matchers)
    return f"max by ({by}) ({ratio(lower, tolerance)})"
