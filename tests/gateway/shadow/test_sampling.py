"""Which requests are scored: the draw, the opt-outs and the budget."""

import random
from collections import Counter
from typing import Any

import pytest

from gateway.shadow.sampling import Budget, is_drawn, is_private, is_scorable


def test_the_draw_is_a_share_that_nobody_can_choose() -> None:
    """The share follows the rate, the same id gives the same draw, another secret another one."""
    ids = [f"request-{number}" for number in range(20_000)]
    drawn = {each for each in ids if is_drawn(each, 0.1, b"secret")}
    assert len(drawn) == pytest.approx(2000, abs=200)
    assert drawn == {each for each in ids if is_drawn(each, 0.1, b"secret")}
    more = {each for each in ids if is_drawn(each, 0.3, b"secret")}
    assert drawn < more
    other = {each for each in ids if is_drawn(each, 0.1, b"another")}
    assert len(drawn & other) == pytest.approx(200, abs=80)
    assert all(is_drawn(each, 1, b"secret") for each in ids)
    assert not any(is_drawn(each, 0, b"secret") for each in ids)


@pytest.mark.parametrize(
    ("fields", "headers", "expected"),
    [
        ({}, {}, False),
        ({"store": True}, {"x-narrowgate-shadow": "on"}, False),
        ({"store": False}, {}, True),
        ({"store": None}, {}, False),
        ({}, {"x-narrowgate-shadow": " On "}, False),
        *(({}, {"x-narrowgate-shadow": word}, True) for word in (" OFF ", "false", "0", "no", "")),
    ],
)
def test_who_said_no(fields: dict[str, Any], headers: dict[str, str], expected: bool) -> None:
    """`store: false` and the header with any word but `on` each keep a request to itself."""
    assert is_private(fields, headers) is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"messages": []}, True),
        ({"n": 1, "best_of": 1}, True),
        ({"n": 2}, False),
        ({"best_of": 2}, False),
        ({"prompt": "a"}, True),
        ({"prompt": ["a"]}, True),
        ({"prompt": ["a", "b"]}, False),
        ({"prompt": [1, 2]}, True),
        ({"prompt": [[1], [2]]}, False),
        ({"prompt": "a", "echo": True}, False),
        ({"prompt": "a", "suffix": "b"}, False),
        ({"prompt": "a", "max_tokens": 0}, False),
    ],
)
def test_one_answer_behind_one_prompt(fields: dict[str, Any], expected: bool) -> None:
    """Only such a request can be scored token by token."""
    assert is_scorable(fields) is expected


def traffic(budget: Budget, share_of_rare: float) -> Counter[tuple[str, bool]]:
    """Send ten times what the budget allows for an hour, 100 tokens a request."""
    source = random.Random(0)
    seen: Counter[tuple[str, bool]] = Counter()
    for second in range(3600):
        for _ in range(10):
            script = "cjk" if source.random() < share_of_rare else "latin"
            slices = ("all", "turns:single", f"script:{script}")
            is_admitted = budget.spend(slices, 100, float(second)) is not None
            seen[script, is_admitted] += 1
    return seen


def test_the_budget_is_kept_and_used() -> None:
    """What is admitted is the rate and one burst, no more and hardly less."""
    seen = traffic(Budget(100, 6000), 0)
    assert 3600 <= seen["latin", True] <= 3660


def test_rare_slices_are_not_starved() -> None:
    """With a tenth of all traffic scored, of a slice with 1 % of it nearly all is."""
    seen = traffic(Budget(100, 6000), 0.01)
    total = sum(count for (_, is_admitted), count in seen.items() if is_admitted)
    assert 3500 <= total <= 3660
    rare = seen["cjk", True] / (seen["cjk", True] + seen["cjk", False])
    assert rare > 0.95
    common = seen["latin", True] / (seen["latin", True] + seen["latin", False])
    assert common == pytest.approx(0.093, abs=0.01)


def test_a_request_as_large_as_the_burst_passes_once() -> None:
    """A full budget admits anything that fits, and then needs its time."""
    budget = Budget(10, 600)
    assert budget.spend(("script:a",), 600, 0)
    assert not budget.spend(("script:b",), 600, 30)
    assert budget.spend(("script:b",), 600, 60)


def test_what_is_owed_is_paid_before_more_is_admitted() -> None:
    """Readings beside count although nothing is left, so the rate holds in the long run."""
    budget = Budget(10, 100)
    assert budget.spend((), 100, 0.0)
    budget.charge(50, 0.0)
    assert not budget.spend((), 1, 5.0)
    assert not budget.spend((), 100, 14.9)
    assert budget.spend((), 100, 15.0)


def test_what_is_given_back_can_be_spent_again() -> None:
    """By the whole and by its slices, each as much as it was taken, and never above the burst."""
    budget = Budget(10, 100)
    rare, other = ("script:a",), ("script:b",)
    assert budget.spend(rare, 0, 0.0)
    assert budget.spend(other, 20, 0.0)
    # Its share is what makes it rare: 60 are less than half of the whole budget leaves to others.
    spent = budget.spend(rare, 60, 0.0)
    assert spent is not None
    assert not budget.spend(rare, 60, 0.0)
    budget.give_back(spent)
    assert budget.spend(rare, 60, 0.0)
    # Of a slice that has less than what is read, only that is taken, and returned.
    budget.charge(-100, 0.0)
    owing = budget.spend(rare, 50, 0.0)
    assert owing is not None
    assert [count for _, count in owing.parts] == [50, 40]
    budget.give_back(owing)
    again = budget.spend(rare, 50, 0.0)
    assert again is not None
    assert [count for _, count in again.parts] == [50, 40]
    # And never more than the burst.
    budget.give_back(again)
    budget.give_back(again)
    assert budget.spend((), 100, 0.0)
    assert not budget.spend((), 1, 0.0)
