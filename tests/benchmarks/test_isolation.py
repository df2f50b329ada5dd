"""The order of the shadow's turns, what is kept of them, and the figures made of that."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.shadow.isolation import Turn, order, read_turns, table


def turn(shadow: str, ttft: float, *, requests: int = 8) -> Turn:
    """Return a turn in which tokens came every 16 ms."""
    return Turn(shadow, ttft, 16.0, requests, failed=0, scored=4, dropped={"reference": 2})


def test_another_one_begins_each_round() -> None:
    """Nobody is always the first, when the machine may be at another pace."""
    turns = list(order(3, ("off", "sound", "absent")))
    assert turns[:6] == ["off", "sound", "absent", "sound", "absent", "off"]
    assert sorted(turns) == sorted(("off", "sound", "absent") * 3)


def test_a_run_goes_on_behind_its_own_turns_alone(tmp_path: Path) -> None:
    """What is kept of other options is refused."""
    kept, planned = tmp_path / "turns", ["off", "sound", "absent"]
    assert read_turns(kept, planned, 8) == []
    kept.write_text(json.dumps(asdict(turn("off", 40.0))) + "\n")
    assert read_turns(kept, planned, 8) == [turn("off", 40.0)]
    for others, requests in ((planned[1:], 8), (planned, 9), ([], 8)):
        with pytest.raises(ValueError, match="of a run with other options"):
            read_turns(kept, others, requests)


def test_medians_are_held_against_those_without_a_shadow() -> None:
    """Rounds of one reference become one row; counts are added up."""
    turns = [turn("off", each) for each in (40.0, 50.0, 41.0)]
    turns += [turn("sound", each) for each in (43.05, 42.0, 90.0)]
    off, sound = table(turns)
    assert (off["ttft_ratio"], sound["ttft_ratio"]) == (1.0, 1.05)
    assert sound["itl_ratio"] == 1.0
    assert (sound["requests"], sound["scored"], sound["dropped"]) == (24, 12, {"reference": 6})
