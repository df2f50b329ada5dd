"""The arithmetic of the last minutes: rates, quantiles, windows, rings."""

import math
import time

import pytest

from gateway.live.rates import Bounds, Totals, added, quantile, rates
from gateway.live.sampler import EVERY_S, KEPT_S, Live
from gateway.registry import Metrics

BOUNDS = (0.1, 0.2, 0.4, math.inf)
BOTH = Bounds(BOUNDS, BOUNDS)


@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        (0.5, (0, 0, 0, 0), None),
        (0.5, (), None),
        (0.5, (10, 10, 10, 10), 0.05),
        (0.5, (0, 10, 10, 10), 0.15),
        (0.95, (0, 0, 20, 20), 0.39),
        (0.5, (5, 10, 10, 10), 0.1),
        (0.95, (5, 10, 10, 10), 0.19),
        (0.5, (0, 0, 0, 3), 0.4),
        (1.0, (1, 2, 3, 4), 0.4),
        (0.25, (4, 4, 8, 8), 0.05),
    ],
)
def test_quantiles_are_prometheus_own(
    q: float, counts: tuple[float, ...], expected: float | None
) -> None:
    """Linear within a bucket, from 0 in the first, the last finite bound beyond it."""
    found = quantile(q, BOUNDS, counts)
    assert found == (None if expected is None else pytest.approx(expected))


def test_rates_are_differences_over_time() -> None:
    """Only what happened in between counts, in a histogram too."""
    before = Totals(10, 1, 100, 1000, (5, 5, 5, 5), ())
    after = Totals(30, 2, 150, 1400, (5, 15, 15, 15), (0, 0, 2, 2))
    found = rates(before, after, 10, BOTH)
    assert (found.requests, found.errors) == (2, 0.1)
    assert (found.prompt_tokens, found.generated_tokens) == (5, 40)
    assert found.first_token_p50_s == pytest.approx(0.15)
    assert found.inter_token_p50_s == pytest.approx(0.3)
    nothing = rates(after, after, 0, BOTH)
    assert nothing.requests == 0
    assert nothing.first_token_p95_s is None


def test_sums_keep_columns() -> None:
    """A part without observations does not shorten those of another."""
    assert added([Totals(requests=1), Totals(2, first_token=(1, 2))]) == Totals(
        3, first_token=(1, 2)
    )
    assert added([]) == Totals()


class Service:
    """Metrics under a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.live = Live(self.metrics, clock=lambda: self.now, wall=lambda: self.now)

    def answer(self, variant: str = "int8", outcome: str = "ok", first_s: float = 0.015) -> None:
        """Count one streamed request of ten tokens."""
        names = ("tiny", variant)
        counters = self.metrics.counters
        counters["requests_total"].labels(*names, "chat", outcome, "stop").inc()
        counters["generated_tokens_total"].labels(*names).inc(10)
        counters["prompt_tokens_total"].labels(*names).inc(3)
        self.metrics.histograms["time_to_first_token_seconds"].labels(*names).observe(first_s)

    def go_on(self, seconds: float) -> None:
        """Let time pass with the readings that belong to it."""
        for _ in range(int(seconds / EVERY_S)):
            self.now += EVERY_S
            self.live.sample()


def test_windows_begin_where_they_say() -> None:
    """What is older than a window is not in it, and a young service divides by its own age."""
    service = Service()
    service.answer()
    service.now += 4
    young = service.live.windows([()])[()]
    assert young[10.0].requests == pytest.approx(1 / 4)
    assert young[300.0].requests == pytest.approx(1 / 4)
    service.now += 1
    service.live.sample()
    service.go_on(60)
    service.answer()
    found = service.live.windows([(), ("tiny",), ("tiny", "int8"), ("tiny", "full")])
    assert found[()][10.0].requests == pytest.approx(1 / 10)
    assert found[("tiny",)][60.0].requests == pytest.approx(1 / 60)
    assert found[("tiny", "int8")][300.0].generated_tokens == pytest.approx(20 / 65)
    assert found[("tiny", "full")][300.0].requests == 0
    assert found[()][10.0].first_token_p50_s == pytest.approx(0.015)
    service.go_on(15)
    assert service.live.windows([()])[()][10.0].requests == 0


def test_errors_are_those_of_the_service() -> None:
    """What clients got wrong or left is no error of ours."""
    service = Service()
    for outcome in ("ok", "rejected", "client_abort", "error", "timeout", "shed"):
        service.answer(outcome=outcome)
    service.now += 1
    found = service.live.windows([()])[()][10.0]
    assert (found.requests, found.errors) == (6, 3)


def test_the_series_is_bounded_and_in_order() -> None:
    """A quarter of an hour is kept, model and variant apart, the oldest step first."""
    service = Service()
    service.answer("full")
    service.go_on(EVERY_S)
    service.answer("int8")
    service.answer("int8")
    service.go_on(EVERY_S)
    first, second = service.live.steps()
    assert first.rates[("tiny", "full")].requests == pytest.approx(1 / EVERY_S)
    assert second.rates[("tiny", "full")].requests == 0
    assert second.rates[("tiny", "int8")].requests == pytest.approx(2 / EVERY_S)
    assert second.rates[("tiny",)].requests == second.rates[()].requests
    service.go_on(KEPT_S + 100)
    steps = service.live.steps()
    assert len(steps) == KEPT_S / EVERY_S
    assert [step.time for step in steps] == sorted(step.time for step in steps)


def test_gauges_are_those_of_now() -> None:
    """Running requests are summed by model and in all; the waiting ones are of models."""
    service = Service()
    service.metrics.gauges["requests_running"].labels("tiny", "int8").set(2)
    service.metrics.gauges["requests_running"].labels("tiny", "full").set(1)
    service.metrics.gauges["requests_waiting"].labels("tiny").set(4)
    running, waiting = service.live.now()
    assert running == {(): 3, ("tiny",): 3, ("tiny", "int8"): 2, ("tiny", "full"): 1}
    assert waiting == {"tiny": 4}


def test_a_reading_is_cheap() -> None:
    """Fifty variants with all their buckets are read in a small part of a step."""
    service = Service()
    for number in range(50):
        service.answer(f"v{number}")
    started = time.thread_time()
    service.live.sample()
    assert time.thread_time() - started < 0.05 * EVERY_S
