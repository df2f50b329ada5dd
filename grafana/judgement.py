"""Verdicts in PromQL."""

from grafana.query import happened, highest, ratio, series

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
    """Return each slice's mean divergence in the time range, as a multiple of its tolerance."""
    return _over_tolerance("model, variant, slice")


def worst_active_slice() -> str:
    """Return the largest of these among the variants that serve."""
    active = f"max by (model, variant) ({series('active_variant')} == 1)"
    return f"topk(1, ({worst_slices()}) and on (model, variant) {active})"


def all_traffic() -> str:
    """Return the same for all traffic of each variant."""
    return _over_tolerance("model, variant", 'slice="all"')


def _over_tolerance(by: str, *matchers: str) -> str:
    # Bounds of the mean begin anew with an alarm, so they would be green while a slice drifts.
    mean = ratio(
        happened("fidelity_kl_nats_total", by, *matchers),
        happened("fidelity_requests_total", by, *matchers),
    )
    return ratio(mean, highest("drift_tolerance_nats", by, *matchers))
