"""The mathematics of one reply."""

import math
import random

import pytest

from gateway.shadow.divergence import (
    LEAST_LOGPROB,
    NotANumber,
    coarse_kl,
    compare,
    noise_floor,
)
from gateway.shadow.records import Position, ScoredPosition


def logs(*probabilities: float) -> dict[int, float]:
    """Return log-probabilities of the tokens 0, 1, ..."""
    return {place: math.log(each) for place, each in enumerate(probabilities)}


def distribution(source: random.Random, size: int) -> list[float]:
    """Return random probabilities, some of them tiny."""
    raw = [math.exp(source.gauss(0, 3)) for _ in range(size)]
    return [each / sum(raw) for each in raw]


def test_a_known_value() -> None:
    """Two tokens and a rest, by hand."""
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5) + 0.25 * math.log(1)
    assert coarse_kl(logs(0.5, 0.25), logs(0.25, 0.5)) == pytest.approx(expected)


def test_it_is_a_lower_bound_that_grows_with_the_candidates() -> None:
    """Each further candidate can only raise it, up to the divergence over the vocabulary."""
    source = random.Random(1)
    for _ in range(50):
        p, q = distribution(source, 40), distribution(source, 40)
        whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        order = sorted(range(40), key=lambda place: -q[place])
        steps = []
        for count in (1, 5, 20, 40):
            ids = order[:count]
            full = {place: math.log(p[place]) for place in ids}
            steps.append(coarse_kl(full, {place: math.log(q[place]) for place in ids}))
        assert steps == sorted(steps)
        assert steps[0] >= 0
        assert steps[-1] == pytest.approx(whole, rel=1e-6)


def test_the_direction_is_from_the_full_model() -> None:
    """Missing what the full model finds likely costs more than the reverse."""
    sure, unsure = logs(0.98, 0.01), logs(0.01, 0.98)
    assert coarse_kl(logs(0.5, 0.49), sure) > coarse_kl(sure, logs(0.5, 0.49))
    assert coarse_kl(sure, unsure) == pytest.approx(0.97 * math.log(98), rel=1e-6)


def test_candidates_that_one_side_does_not_tell() -> None:
    """They count to the rest on both sides, so the bound holds."""
    told = coarse_kl(logs(0.5, 0.3), logs(0.4, 0.3))
    full = logs(0.5, 0.3)
    assert coarse_kl({0: full[0], 1: full[1], 7: -5.0}, logs(0.4, 0.3)) == pytest.approx(told)
    assert coarse_kl({0: full[0]}, logs(0.4, 0.3)) <= told
    assert coarse_kl({}, logs(0.4, 0.3)) == 0


@pytest.mark.parametrize("zero", [-math.inf, -1e9])
def test_impossible_tokens_stay_finite(zero: float) -> None:
    """What one side finds impossible counts as e to the -100."""
    assert coarse_kl({0: 0.0}, {0: zero}) == pytest.approx(-LEAST_LOGPROB)
    assert coarse_kl({0: zero}, {0: 0.0}) == pytest.approx(-LEAST_LOGPROB)
    assert coarse_kl({0: zero}, {0: zero}) == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 0.5])
def test_no_numbers_are_an_error(wrong: float) -> None:
    """NaN, and more than certain, are told and never averaged; so is a sum beyond 1."""
    for full, compressed in ((wrong, -1.0), (-1.0, wrong)):
        with pytest.raises(NotANumber):
            coarse_kl({0: full}, {0: compressed})
    with pytest.raises(NotANumber, match=r"add up to 1\.2"):
        coarse_kl(logs(0.6, 0.6), logs(0.5, 0.5))


def test_the_same_twice_is_zero() -> None:
    """Rounding leaves nothing below zero."""
    source = random.Random(2)
    for _ in range(200):
        row = {place: math.log(each) for place, each in enumerate(distribution(source, 5))}
        assert 0 <= coarse_kl(row, row) < 1e-12


def position(token_id: int, top: dict[int, float]) -> Position:
    """Return a position whose token has its value in ``top``, or -9."""
    return Position(token_id, top.get(token_id, -9.0), top)


def test_a_reply() -> None:
    """Agreement, first divergence and the cost of what was served, position by position."""
    served = [
        position(0, logs(0.6, 0.3)),
        position(1, logs(0.6, 0.3)),
        position(5, logs(0.6, 0.3)),
        position(0, logs(0.6, 0.3)),
    ]
    scored = [
        ScoredPosition(logs(0.6, 0.3), 0),
        ScoredPosition(logs(0.3, 0.6), 1),
        ScoredPosition(logs(0.6, 0.3) | {5: -8.0}, 0),
        ScoredPosition({1: -1.0}, 9),
    ]
    found = compare(served, scored)
    assert found.agrees == (True, False, True, False)
    assert found.first_divergence == 1
    assert found.kl[0] == pytest.approx(0, abs=1e-12)
    assert found.kl[1] == pytest.approx(0.3 * math.log(2))
    assert found.nll == pytest.approx((-math.log(0.6), -math.log(0.3), 9.0, -math.log(0.6)))
    # The last one's token is one that the reference did not tell.
    assert found.nll_delta == pytest.approx((0, math.log(0.3 / 0.6), -1.0, 0))
    assert found.mean_kl == pytest.approx(sum(found.kl) / 4)
    with pytest.raises(ValueError, match="shorter"):
        compare(served, scored[:2])


def test_the_floor_of_equal_readings_is_zero() -> None:
    """Two readings that differ give their difference, equal ones nothing."""
    one = [ScoredPosition(logs(0.6, 0.3), 0)]
    other = [ScoredPosition(logs(0.5, 0.3), 1)]
    same = noise_floor([0], one, one)
    assert (same.kl, same.agrees, same.nll_delta) == ((0.0,), (True,), (0.0,))
    assert same.first_divergence is None
    found = noise_floor([0], one, other)
    assert found.kl[0] == pytest.approx(0.6 * math.log(1.2) + 0.1 * math.log(0.5))
    assert found.first_divergence == 0
    assert found.nll_delta[0] == pytest.approx(math.log(0.5 / 0.6))
