"""The confidence sequence: right at all times at once, tight enough to decide, and small."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.shadow.confidence import ConfidenceSequence

ERROR = 0.1
RUNS = 200
LENGTH = 600


def heavy(choose: random.Random, mean: float) -> float:
    """Return a heavy-tailed value below 1 whose mean is a little below ``mean``."""
    return min(1.0, choose.gammavariate(0.5, 2 * mean))


def test_it_is_right_at_all_times() -> None:
    """Looking after every value, each side errs in fewer runs than its error; 95 % intervals of
    a normal distribution, looked at as often, err in far more."""
    choose = random.Random(1)
    sample = [heavy(choose, 0.1) for _ in range(200_000)]
    mean = sum(sample) / len(sample)
    wrong = {"below": 0, "above": 0, "normal": 0}
    for _ in range(RUNS):
        sequence = ConfidenceSequence(guess=0.1)
        squares = 0.0
        errors = set()
        for _ in range(LENGTH):
            value = choose.choice(sample)
            sequence.add(value)
            squares += value * value
            if sequence.is_below(mean, error=ERROR):
                errors.add("below")
            if sequence.is_above(mean, error=ERROR):
                errors.add("above")
            variance = squares / sequence.n - sequence.mean**2
            if sequence.n >= 20 and abs(sequence.mean - mean) > 1.645 * math.sqrt(
                variance / sequence.n
            ):
                errors.add("normal")
        for each in errors:
            wrong[each] += 1
    assert wrong["below"] <= ERROR * RUNS
    assert wrong["above"] <= ERROR * RUNS
    assert wrong["normal"] > 2 * ERROR * RUNS


def test_it_is_right_where_values_depend_on_each_other() -> None:
    """A mean that wanders with the past is covered as the mean of what was to be expected."""
    choose = random.Random(2)
    wrong = 0
    for _ in range(RUNS):
        sequence = ConfidenceSequence(guess=0.1)
        expected, value, failed = 0.0, 0.1, False
        for _ in range(LENGTH // 2):
            chance = 0.05 + 0.4 * value
            value = float(choose.random() < chance)
            expected += chance
            sequence.add(value)
            mean = expected / sequence.n
            failed |= sequence.is_below(mean, error=ERROR) or sequence.is_above(mean, error=ERROR)
        wrong += failed
    assert wrong <= 2 * ERROR * RUNS


@pytest.mark.parametrize(("ratio", "most"), [(0.0, 100), (0.5, 300), (0.8, 2500)])
def test_how_many_values_show_that_a_mean_is_low_enough(ratio: float, most: int) -> None:
    """The median number of values until the bound is below the tolerance, at 1 in 500 errors."""
    choose = random.Random(3)
    needed = []
    for _ in range(11):
        sequence = ConfidenceSequence(guess=0.1)
        while not sequence.is_below(0.1, error=0.002):
            sequence.add(heavy(choose, 0.1 * ratio) if ratio else 0.0)
        needed.append(sequence.n)
    assert sorted(needed)[5] <= most


def test_gross_damage_shows_within_thirty_values() -> None:
    """Values at the worst are above the tolerance almost at once."""
    sequence = ConfidenceSequence(guess=0.1)
    while not sequence.is_above(0.1, error=0.002):
        sequence.add(1.0)
    assert sequence.n <= 20


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60),
    st.sampled_from([0.2, 0.05, 1e-3, 1e-6]),
    st.floats(0.02, 0.98),
)
def test_bounds_and_decisions_agree(values: list[float], error: float, limit: float) -> None:
    """A limit is decided on exactly when it is outside of the bounds."""
    sequence = ConfidenceSequence()
    for value in values:
        sequence.add(value)
    lower, upper = sequence.bounds(error=error)
    assert 0 <= lower <= sequence.mean <= upper <= 1
    if abs(limit - upper) > 1e-6:
        assert sequence.is_below(limit, error=error) == (upper < limit)
    if abs(limit - lower) > 1e-6:
        assert sequence.is_above(limit, error=error) == (lower > limit)


def test_nothing_seen_means_nothing_known() -> None:
    """Before any value the bounds are the whole range."""
    assert ConfidenceSequence().bounds(error=0.05) == (0.0, 1.0)
    assert not ConfidenceSequence().is_below(1.0, error=0.05)


def test_a_million_values_leave_sound_bounds() -> None:
    """Long runs neither overflow nor lose the mean."""
    choose = random.Random(4)
    sequence = ConfidenceSequence(guess=0.1)
    for _ in range(1_000_000):
        sequence.add(0.05 if choose.random() < 0.5 else 0.07)
    lower, upper = sequence.bounds(error=1e-6)
    assert 0.0595 < lower < 0.06 < upper < 0.0605


def test_its_state_is_plain_data() -> None:
    """A sequence that went through JSON goes on as if nothing had been."""
    sequence = ConfidenceSequence(guess=0.1)
    for value in (0.3, 0.0, 1.0):
        sequence.add(value)
    again = ConfidenceSequence.from_state(json.loads(json.dumps(sequence.to_state())))
    for each in (sequence, again):
        each.add(0.2)
    assert again.bounds(error=0.01) == sequence.bounds(error=0.01)
    assert again.n == 4
