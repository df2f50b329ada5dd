"""Scored requests as sums, slice by slice."""

import pytest

from gateway.registry import Metrics
from gateway.shadow import fidelity_metrics
from gateway.shadow.divergence import Divergence
from gateway.shadow.fidelity_metrics import FidelityMetrics
from gateway.shadow.scored import ScoredRequest

FOUND = Divergence(
    kl=(0.1, 0.3, 0.5),
    agrees=(True, False, True),
    nll=(1.0, 2.0, 3.0),
    nll_delta=(0.5, -0.5, 0.25),
)


def test_slices_of_the_same_positions_share_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three slices and an empty one of two different ranges are two sums, each under its names."""
    summed: list[range] = []
    of = fidelity_metrics._Sums.of

    def watched(found: Divergence, places: range) -> fidelity_metrics._Sums:
        summed.append(places)
        return of(found, places)

    monkeypatch.setattr(fidelity_metrics._Sums, "of", watched)
    metrics = Metrics()
    FidelityMetrics(metrics).take(
        ScoredRequest(
            request_id="a",
            model="m",
            variant="v",
            recipe_digest=None,
            reference="r",
            slices={"all": range(3), "x:1": range(3), "x:2": range(1, 3), "x:3": range(0)},
            num_prompt_tokens=4,
            divergence=FOUND,
            estimator="topk",
            time=0.0,
            trace_id=None,
        )
    )
    assert summed == [range(3), range(1, 3)]
    counters = metrics.counters
    names = ("m", "v", "x:2")
    kl = counters["fidelity_kl_nats_total"].labels(*names, "topk")._value.get()
    assert kl == pytest.approx(0.4)
    costs = counters["fidelity_nll_nats_total"]
    assert costs.labels(*names, "variant")._value.get() == 5
    assert costs.labels(*names, "full")._value.get() == 4.75
    assert counters["fidelity_tokens_total"].labels(*names, "false")._value.get() == 1
    assert counters["fidelity_tokens_total"].labels("m", "v", "all", "true")._value.get() == 2
