"""Verdicts in PromQL."""

from grafana.query import highest, series

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
    by = "model, variant, slice"
    lower, tolerance = highest("drift_mean_lower_nats", by), highest("drift_tolerance_nats", by)
    return f"{lower} / ({tolerance} > 0)"
