"""The probe of an engine by its first tokens."""

import math

import pytest

from gateway.shadow.probe import largest_change


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": -1.0, "b": -2.0}, {"a": -1.0, "b": -2.0}, 0.0),
        ({"a": -1.0, "b": -2.0}, {"b": -2.5, "a": -1.1}, 0.5),
        ({"a": -1.0, "b": -2.0}, {"a": -1.0, "c": -1.5}, 0.5),  # b left, c came
        ({"a": -1.0}, {"c": -4.0}, 3.0),
        ({"a": -1.0}, {}, math.inf),
        ({"a": -1.0}, {"a": math.nan}, math.inf),
    ],
)
def test_the_largest_change(
    before: dict[str, float], now: dict[str, float], expected: float
) -> None:
    """Tokens that left or came count with what they changed at least."""
    assert largest_change(before, now) == pytest.approx(expected)
