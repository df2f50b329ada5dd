"""The detector: rare alarms without damage, quick ones with it, and sound numbers for ever."""

import json
import random
import statistics

import pytest

from gateway.shadow.detector import Detector


def delay(choose: random.Random, mean: float, *, threshold: float, most: int) -> int:
    """Return how many heavy-tailed ratios of this mean it takes to an alarm, ``most`` if none."""
    detector = Detector(threshold)
    for number in range(1, most + 1):
        if detector.add(min(choose.gammavariate(0.5, 2 * mean), 10.0)):
            return number
    return most


def test_false_alarms_are_as_rare_as_promised() -> None:
    """At the very border of the tolerance, within n values at most n / threshold runs alarm."""
    choose = random.Random(1)
    runs, length, threshold = 600, 200, 1000.0
    alarms = sum(delay(choose, 1.0, threshold=threshold, most=length) < length for _ in range(runs))
    assert 0 < alarms <= runs * length / threshold


def test_alarms_come_at_all_near_the_border() -> None:
    """The mean number of values to a false alarm is the threshold at least, and not infinite."""
    choose = random.Random(2)
    runs = [delay(choose, 1.0, threshold=100.0, most=20_000) for _ in range(100)]
    assert 100 <= statistics.mean(runs) < 5_000


def test_no_alarm_within_the_tolerance() -> None:
    """A fifth below the tolerance, 200,000 values raise no alarm at the usual threshold."""
    assert delay(random.Random(3), 0.83, threshold=1e5, most=200_000) == 200_000


@pytest.mark.parametrize(("drift", "median"), [(1.5, 900), (2.0, 250), (4.0, 60), (40.0, 12)])
def test_delays(drift: float, median: int) -> None:
    """After a change from 1/1.2 of the tolerance, half of the runs alarm within so many values."""
    choose = random.Random(4)
    found = [delay(choose, drift / 1.2, threshold=1e5, most=5_000) for _ in range(21)]
    assert statistics.median(found) <= median


def test_a_long_quiet_time_does_not_delay_an_alarm() -> None:
    """What was good for 300,000 values is forgotten within a few bad ones."""
    detector = Detector(1e5)
    for _ in range(300_000):
        detector.add(0.1)
    bad = 1
    while not detector.add(10.0):
        bad += 1
    assert bad <= 10


def test_no_overflow_after_an_alarm() -> None:
    """Damage that goes on keeps the value finite, and its end brings it down again."""
    detector = Detector(2.6e6)
    for _ in range(100_000):
        assert detector.e_value < 1e10
        detector.add(10.0)
    recovered = 0
    while detector.e_value >= 20:
        detector.add(0.0)
        recovered += 1
        assert recovered < 2_000


def test_its_state_is_plain_data() -> None:
    """A detector that went through JSON goes on as if nothing had been; another kind is refused."""
    detector = Detector(100.0)
    for ratio in (0.0, 3.0, 2.0):
        detector.add(ratio)
    state = json.loads(json.dumps(detector.to_state()))
    assert Detector.from_state(state, threshold=100.0).e_value == detector.e_value
    with pytest.raises(ValueError, match="6 bets, the state 1"):
        Detector.from_state({"values": [1.0]}, threshold=100.0)
