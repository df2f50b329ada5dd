"""Tolerances: from the manifest, by hand or learned; and the promise about false alarms."""

import pytest

from compression.fidelity_record import SliceFidelity
from gateway.errors import SettingsError
from gateway.shadow.tolerance import (
    FalseAlarmBudget,
    Source,
    Tolerance,
    ToleranceRules,
    Tolerances,
)


def measured(name: str, kld: float, *, tokens: int = 1000) -> SliceFidelity:
    """Return the manifest's record of one text."""
    return SliceFidelity(
        name=name,
        kld_mean=kld,
        kld_mean_ci95=(kld, kld),
        kld_p99=kld,
        top1=0.9,
        top1_ci95=(0.9, 0.9),
        tokens=tokens,
    )


def known(tolerance: Tolerance | None) -> tuple[float, Source]:
    """Return nats and source of a tolerance that must be there, fit for comparing."""
    assert tolerance is not None
    return round(tolerance.nats, 9), tolerance.source


FIDELITY = (measured("code", 0.1), measured("english", 0.02, tokens=3000), measured("json", 0.001))


def test_a_measured_text_gives_its_slice_a_tolerance() -> None:
    """What the manifest has of a slice, times the factor, is its tolerance."""
    tolerances = Tolerances(ToleranceRules(factor=1.5), FIDELITY)
    assert known(tolerances.of("domain:code")) == (0.15, Source.MANIFEST)


def test_all_texts_together_stand_for_the_rest() -> None:
    """Slices without a text of their own have the mean over all tokens."""
    tolerances = Tolerances(ToleranceRules(), FIDELITY)
    mean = (0.1 + 3 * 0.02 + 0.001) / 5
    for name in ("all", "turns:multi", "script:latin"):
        assert known(tolerances.of(name)) == (round(1.2 * mean, 9), Source.POOLED)


def test_no_tolerance_below_the_floor() -> None:
    """Noise of kernels and other traffic is borne, however good the measured figure is."""
    assert Tolerances(ToleranceRules(), FIDELITY).of("domain:json") == Tolerance(
        0.01, Source.MANIFEST
    )


def test_a_bad_model_has_no_high_tolerance() -> None:
    """What was terrible when it was measured is beyond the tolerance, unless set by hand."""
    terrible = (measured("code", 3.0),)
    assert Tolerances(ToleranceRules(), terrible).of("domain:code") == Tolerance(
        0.3, Source.MANIFEST
    )
    by_hand = Tolerances(ToleranceRules(by_hand={"all": 4.0}), None)
    assert by_hand.of("all") == Tolerance(4.0, Source.SET)


def test_by_hand_comes_first() -> None:
    """A slice's own figure goes before the manifest, that of ``all`` before the pool alone."""
    rules = ToleranceRules(by_hand={"domain:code": 0.4, "all": 0.05})
    tolerances = Tolerances(rules, FIDELITY)
    assert tolerances.of("domain:code") == Tolerance(0.4, Source.SET)
    assert tolerances.of("turns:multi") == Tolerance(0.05, Source.SET)
    assert tolerances.of("domain:json") == Tolerance(0.01, Source.MANIFEST)


def test_without_figures_it_is_learned() -> None:
    """No manifest means no tolerance; a baseline gives one with room for its own error."""
    tolerances = Tolerances(ToleranceRules(), None)
    assert tolerances.of("all") is None
    assert known(tolerances.learned(0.02, 0.001)) == (0.0276, Source.LEARNED)
    assert tolerances.learned(1e-5, 0).nats == 0.01
    assert tolerances.learned(5.0, 0.1).nats == 0.3


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"by_hand": {"all": -1.0}}, "slice 'all' is -1.0"),
        ({"by_hand": {"all": float("nan")}}, "slice 'all' is nan"),
        ({"factor": 0.5}, "'factor' is 0.5"),
        ({"floor": 1.0}, "use 0 < floor <= ceiling"),
        ({"baseline_requests": 1}, "'baseline_requests' is 1"),
    ],
)
def test_wrong_rules_are_refused(rules: dict[str, object], words: str) -> None:
    """What makes no sense is one line that names field and value."""
    with pytest.raises(SettingsError, match=words):
        ToleranceRules(**rules)  # type: ignore[arg-type]


def test_the_promise_covers_all_slices_together() -> None:
    """More slices make each alarm harder, so that together they keep the same promise."""
    budget = FalseAlarmBudget(100_000)
    assert budget.threshold(26) == 2_600_000
    assert budget.in_words(26) == (
        "at most one false alarm per 100,000 scored requests, all 26 slices together"
    )
    with pytest.raises(SettingsError, match="budget is 0"):
        FalseAlarmBudget(0)
