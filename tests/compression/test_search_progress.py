"""The one bar of a search: what it says is left, and that it never goes back."""

from compression.events import Progress
from compression.search.progress import SearchProgress


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_search_of_two_artifacts() -> None:
    """Layers tell of artifacts until one is built, then artifacts tell of each other."""
    clock, told = Clock(), list[Progress]()
    progress = SearchProgress(told.append, 10, clock)
    progress.expect(2)
    progress.begin_table(known=4)
    assert told[-1].detail == "costs of layer 4 of 10"
    for _ in range(6):
        clock.now += 3
        progress.layer()
    assert progress.remaining_s() == 2 * 90
    assert told[-1].detail == "costs of layer 10 of 10, about 3 min left"
    progress.begin_trial()
    clock.now += 42.5
    progress.on_progress(Progress("quantize", 5, 10, "tensors"))
    assert progress.remaining_s() == 57.5 + 100
    assert told[-1].detail == "artifact 1: compressing, about 3 min left"
    clock.now += 42.5
    progress.on_progress(Progress("measure", 0, 60, "layers"))
    assert told[-1].detail == "artifact 1: measuring, about 2 min left"
    clock.now += 15
    progress.end_trial()
    progress.begin_trial()
    progress.on_progress(Progress("quantize", 0, 10, "tensors"))
    assert progress.remaining_s() == 100
    clock.now += 80
    progress.on_progress(Progress("measure", 30, 60, "layers"))
    assert told[-1].detail == "artifact 2: measuring, less than a minute left"
    progress.end()
    shares = [each.done for each in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-2] < 100, shares[-1]) == (0, True, 100)
    assert {(each.stage, each.total) for each in told} == {("search", 100)}


def test_what_is_found_in_the_store_takes_no_time() -> None:
    """It does not make builds look short, and nothing is said where nothing tells."""
    clock, told = Clock(), list[Progress]()
    progress = SearchProgress(told.append, 10, clock)
    progress.expect(3)
    progress.begin_trial()
    clock.now += 0.5
    progress.end_trial()
    assert progress.remaining_s() is None
    progress.begin_trial()
    clock.now += 1
    progress.on_progress(Progress("quantize", 0, 10, "tensors"))
    assert told[-1].detail == "artifact 2: compressing"


def test_more_artifacts_than_expected() -> None:
    """The bar waits, and what is left is that of the one at hand."""
    clock, told = Clock(), list[Progress]()
    progress = SearchProgress(told.append, 10, clock)
    progress.expect(1)
    for _ in range(3):
        progress.begin_trial()
        for done in range(11):
            clock.now += 2
            progress.on_progress(Progress("quantize", done, 10, "tensors"))
        progress.end_trial()
    shares = [each.done for each in told]
    assert shares == sorted(shares)
    assert max(shares) <= 99


def test_other_events_pass_through() -> None:
    """Waiting for another build is told as it is; so is what comes before an artifact."""
    told = list[Progress]()
    progress = SearchProgress(told.append, 10, Clock())
    events = [Progress("hash", 1, 2, "bytes"), Progress("wait", 0, 1, "steps")]
    progress.on_progress(events[0])
    progress.begin_trial()
    progress.on_progress(events[1])
    assert told == events
