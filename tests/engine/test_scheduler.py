"""Tests of the pure scheduling decisions."""

import pytest

from gateway.engine.scheduler import Scheduler, Work
from gateway.engine.sequence import SamplingParams, Sequence


def make_sequence(num_prompt: int, *, max_tokens: int = 8) -> Sequence:
    """Return a sequence whose prompt is 0, 1, 2 …"""
    return Sequence(list(range(num_prompt)), SamplingParams(max_tokens=max_tokens))


def sizes(work: list[Work]) -> list[int]:
    """Return how many tokens each item feeds."""
    return [len(item.token_ids) for item in work]


def test_long_prompts_are_read_in_chunks_and_sampled_once() -> None:
    """A prompt longer than the budget takes several steps; only the last one samples."""
    scheduler = Scheduler(token_budget=4)
    sequence = make_sequence(10)
    scheduler.add(sequence)

    steps = [scheduler.schedule()[0] for _ in range(3)]

    assert [item.token_ids for item in steps] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [item.samples for item in steps] == [False, False, True]


def test_decoding_feeds_the_last_token() -> None:
    """After the prompt, each step feeds exactly the token chosen last."""
    scheduler = Scheduler()
    sequence = make_sequence(3)
    scheduler.add(sequence)
    scheduler.schedule()
    sequence.output_ids.append(77)

    assert [(w.token_ids, w.samples) for w in scheduler.schedule()] == [([77], True)]


def test_no_more_sequences_run_than_allowed_and_in_order_of_arrival() -> None:
    """The next waiting sequence starts when one is removed, first come first served."""
    scheduler = Scheduler(max_num_sequences=2)
    sequences = [make_sequence(2) for _ in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)

    assert [w.sequence for w in scheduler.schedule()] == sequences[:2]
    for sequence in sequences[:2]:
        sequence.output_ids.append(1)
    scheduler.remove(sequences[0])

    assert [w.sequence for w in scheduler.schedule()] == [sequences[1], sequences[2]]


def test_a_long_prompt_never_stops_those_that_decode() -> None:
    """A decoding sequence gets its token in every step while a prompt is read."""
    scheduler = Scheduler(max_num_sequences=2, token_budget=4)
    decoding, reading = make_sequence(2), make_sequence(9)
    scheduler.add(decoding)
    scheduler.schedule()
    decoding.output_ids.append(5)
    scheduler.add(reading)

    for expected in (3, 3, 3):
        work = scheduler.schedule()
        assert work[0].sequence is decoding
        assert sizes(work) == [1, expected]
        decoding.output_ids.append(5)


def test_the_budget_bounds_every_step() -> None:
    """No step holds more tokens than the budget, and all prompts get read in the end."""
    scheduler = Scheduler(max_num_sequences=4, token_budget=6)
    sequences = [make_sequence(size) for size in (5, 7, 1, 9)]
    for sequence in sequences:
        scheduler.add(sequence)

    for _ in range(6):
        work = scheduler.schedule()
        assert sum(sizes(work)) <= 6
        for item in work:
            if item.samples:
                item.sequence.output_ids.append(1)

    assert all(sequence.output_ids for sequence in sequences)


def test_removing_twice_or_something_unknown_is_harmless() -> None:
    """Removal is idempotent, whether the sequence waits or runs."""
    scheduler = Scheduler()
    running, waiting = make_sequence(1), make_sequence(1)
    scheduler.add(running)
    scheduler.add(waiting)
    scheduler.schedule()

    for sequence in (running, waiting, running, make_sequence(1)):
        scheduler.remove(sequence)

    assert not scheduler.has_work
    assert scheduler.schedule() == []


@pytest.mark.parametrize("limit", [0, 513])
def test_a_limit_that_starves_sequences_is_refused(limit: int) -> None:
    """Each running sequence needs room for one token in every step."""
    with pytest.raises(ValueError, match="max_num_sequences"):
        Scheduler(max_num_sequences=limit, token_budget=512)
