"""Tests of the pure scheduling decisions."""

import random

import pytest

from gateway.engine.pages import PAGE_TOKENS, PageBudget, PageSizes
from gateway.engine.scheduler import Scheduler, Work
from gateway.engine.sequence import SamplingParams, Sequence


def make_sequence(num_prompt: int, *, max_tokens: int = 8) -> Sequence:
    """Return a sequence whose prompt is 0, 1, 2 …"""
    return Sequence(list(range(num_prompt)), SamplingParams(max_tokens=max_tokens))


def step(scheduler: Scheduler) -> list[Work]:
    """Carry a step out as the loop does: caches for new sequences, tokens for those that sample."""
    work = scheduler.schedule()
    for item in work:
        item.sequence.cache = item.sequence.cache or object()
        if item.samples:
            item.sequence.output_ids.append(1000 + len(item.sequence.output_ids))
    return work


def sizes(work: list[Work]) -> list[int]:
    """Return how many tokens each item feeds."""
    return [len(item.token_ids) for item in work]


def test_long_prompts_are_read_in_chunks_and_sampled_once() -> None:
    """A prompt longer than the budget takes several steps; only the last one samples."""
    scheduler = Scheduler(max_num_sequences=1, token_budget=4)
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


def finish(scheduler: Scheduler, *sequences: Sequence) -> None:
    """Run until the sequences have all tokens they may have, and remove each as it ends."""
    left = set(sequences)
    for _ in range(1000):
        step(scheduler)
        for sequence in [each for each in left if len(each.output_ids) >= each.params.max_tokens]:
            scheduler.remove(sequence)
            left.remove(sequence)
        if not left:
            return
    raise AssertionError("the sequences did not come to an end")


def test_short_prompts_do_not_wait_for_long_ones() -> None:
    """A short prompt that comes second is read in the same step as a chunk of the long one."""
    scheduler = Scheduler(token_budget=64)
    long, short = make_sequence(1000), make_sequence(8)
    scheduler.add(long)
    step(scheduler)
    scheduler.add(short)

    assert {item.sequence: len(item.token_ids) for item in step(scheduler)} == {short: 8, long: 56}
    assert short.output_ids


def test_beside_decoding_sequences_prompts_are_read_in_small_chunks() -> None:
    """A full budget of prompt tokens would make every other stream stall."""
    scheduler = Scheduler(token_budget=512)
    decoding, reading = make_sequence(4), make_sequence(2000)
    scheduler.add(decoding)
    step(scheduler)
    scheduler.add(reading)

    assert sizes(step(scheduler)) == [1, 128]
    scheduler.remove(decoding)
    assert sizes(step(scheduler)) == [512]


def test_pages_are_taken_as_tokens_come_and_all_given_back() -> None:
    """A sequence holds pages for what it has read, and none after its end."""
    scheduler = Scheduler(sizes=PageSizes(total=10, per_sequence=1), shares_prefixes=False)
    sequence = make_sequence(PAGE_TOKENS, max_tokens=PAGE_TOKENS)
    scheduler.add(sequence)
    step(scheduler)
    assert scheduler.pages.used == 2
    step(scheduler)
    assert scheduler.pages.used == 3
    scheduler.remove(sequence)
    assert scheduler.pages.used == 0


def test_pages_of_prefixes_count_as_free() -> None:
    """What nobody runs on is taken, but held by no sequence."""
    scheduler = Scheduler(sizes=PageSizes(total=10))
    sequence = make_sequence(3 * PAGE_TOKENS, max_tokens=1)
    scheduler.add(sequence)
    step(scheduler)
    assert (scheduler.pages.used, scheduler.num_held_pages) == (3, 3)
    scheduler.remove(sequence)
    assert (scheduler.pages.used, scheduler.num_held_pages) == (3, 0)


def test_a_sequence_waits_until_its_pages_are_free() -> None:
    """Admission is by pages, not by the count of sequences alone."""
    scheduler = Scheduler(sizes=PageSizes(total=4), shares_prefixes=False)
    first, second = make_sequence(3 * PAGE_TOKENS), make_sequence(2 * PAGE_TOKENS)
    scheduler.add(first)
    scheduler.add(second)

    assert [item.sequence for item in step(scheduler)] == [first]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.remove(first)
    assert [item.sequence for item in step(scheduler)] == [second]


def test_the_youngest_gives_way_and_loses_no_token() -> None:
    """Out of pages, the last one admitted waits and later reads prompt and answer again."""
    scheduler = Scheduler(sizes=PageSizes(total=4), shares_prefixes=False)
    old, young = make_sequence(PAGE_TOKENS + 1, max_tokens=30), make_sequence(9, max_tokens=30)
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.counts.preemptions:
        step(scheduler)
    assert scheduler.num_running == 1
    assert young.cache is None
    assert young.num_pages == 0
    answered = list(young.output_ids)
    assert answered

    while old.num_tokens < PAGE_TOKENS + 1 + 30:
        step(scheduler)
    scheduler.remove(old)
    [item] = step(scheduler)

    assert item.sequence is young
    assert item.token_ids == young.prompt_ids + answered
    assert item.samples
    assert young.output_ids[:-1] == answered


def test_two_half_read_prompts_cannot_block_each_other() -> None:
    """If the pages are spread over prompts none of which can go on, the youngest gives way."""
    scheduler = Scheduler(sizes=PageSizes(total=8), token_budget=32, shares_prefixes=False)
    prompts = [make_sequence(6 * PAGE_TOKENS, max_tokens=2) for _ in range(2)]
    for prompt in prompts:
        scheduler.add(prompt)

    finish(scheduler, *prompts)

    assert scheduler.pages.used == 0


def test_prompts_begin_with_what_was_read_before() -> None:
    """Only what follows the shared tokens is read; at least the last token always is."""
    scheduler = Scheduler()
    first = make_sequence(100, max_tokens=4)
    scheduler.add(first)
    finish(scheduler, first)

    longer, same, other = make_sequence(130), make_sequence(100), make_sequence(100)
    other.prompt_ids[20] = 5000
    for sequence in (longer, same, other):
        scheduler.add(sequence)
    work = {item.sequence: item for item in scheduler.schedule()}

    assert work[longer].token_ids == list(range(100, 130))
    assert work[same].token_ids == [99]
    assert work[other].token_ids == other.prompt_ids[20:]
    assert [work[each].start for each in (longer, same, other)] == [100, 99, 20]
    assert all(each.shared is not None for each in (longer, same, other))
    assert scheduler.counts.shared_tokens == 100 + 99 + 20


def test_a_running_sequence_shares_its_prompt() -> None:
    """The second of two requests with one system prompt does not wait for the first's end."""
    scheduler = Scheduler()
    first, second = make_sequence(64), make_sequence(80)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)

    work = {item.sequence: item.start for item in step(scheduler)}

    assert work == {first: 64, second: 64}
    assert second.shared.cache is first.cache


def test_answers_are_shared_too() -> None:
    """The next turn of a chat begins with the last answer's tokens, but for the very last."""
    scheduler = Scheduler()
    turn = make_sequence(20, max_tokens=30)
    scheduler.add(turn)
    finish(scheduler, turn)
    following = make_sequence(0)
    following.prompt_ids += [*turn.prompt_ids, *turn.output_ids, 7, 8, 9]
    scheduler.add(following)

    assert step(scheduler)[0].start == 49


def test_prefixes_make_room_least_recently_used_first() -> None:
    """What nobody runs on is forgotten when a sequence needs its pages, and no more than needed."""
    scheduler = Scheduler(sizes=PageSizes(total=6))
    one, two = (make_sequence(2 * PAGE_TOKENS - 1, max_tokens=1) for _ in range(2))
    two.prompt_ids[0] = 77
    for sequence in (one, two):
        scheduler.add(sequence)
        finish(scheduler, sequence)
    assert scheduler.pages.used == 4
    again = Sequence(list(one.prompt_ids), SamplingParams(max_tokens=1))
    scheduler.add(again)
    finish(scheduler, again)  # takes the last two pages: the first prefix was used most recently

    other = make_sequence(PAGE_TOKENS, max_tokens=1)
    other.prompt_ids[0] = 99
    scheduler.add(other)
    finish(scheduler, other)
    assert scheduler.pages.used == 5
    probe = Sequence([*one.prompt_ids, 5], SamplingParams(max_tokens=1))
    lost = Sequence([*two.prompt_ids, 5], SamplingParams(max_tokens=1))
    for sequence, start in ((probe, len(one.prompt_ids)), (lost, 0)):
        scheduler.add(sequence)
        assert step(scheduler)[0].start == start
        scheduler.remove(sequence)


def test_damaged_caches_are_not_shared() -> None:
    """After a failed step nobody begins with what the failed sequence holds."""
    scheduler = Scheduler()
    sequence = make_sequence(64)
    scheduler.add(sequence)
    step(scheduler)
    step(scheduler)
    scheduler.remove(sequence, keeps_prefix=False)
    assert scheduler.pages.used == 0
    again = make_sequence(64)
    scheduler.add(again)

    assert step(scheduler)[0].start == 0


def make_background(num_tokens: int, *, logits_from: int = 0) -> Sequence:
    """Return a text to be scored."""
    sequence = make_sequence(num_tokens, max_tokens=1)
    sequence.is_background, sequence.logits_from = True, logits_from
    return sequence


def test_background_fills_only_idle_steps() -> None:
    """A text is scored in chunks while nothing else runs, and stands still while anything does."""
    scheduler = Scheduler()
    text = make_background(300, logits_from=100)
    scheduler.add(text)
    [first] = step(scheduler)
    asked = make_sequence(4, max_tokens=2)
    scheduler.add(asked)
    assert [item.sequence for item in step(scheduler)] == [asked]
    assert [item.sequence for item in step(scheduler)] == [asked]
    scheduler.remove(asked)
    rest = [step(scheduler)[0] for _ in range(2)]

    assert [len(item.token_ids) for item in (first, *rest)] == [128, 128, 44]
    assert [item.wanted for item in (first, *rest)] == [28, 128, 44]
    assert not any(item.samples for item in (first, *rest))
    assert text.num_pending == 0
    scheduler.remove(text)
    assert not scheduler.has_work


def test_background_gives_its_pages_up_first() -> None:
    """A request takes the pages of a text that is scored, which then wants no logits twice."""
    scheduler = Scheduler(sizes=PageSizes(total=20))
    text = make_background(300)
    scheduler.add(text)
    step(scheduler)
    asked = make_sequence(310, max_tokens=2)
    asked.prompt_ids[0] = 9
    scheduler.add(asked)
    assert [item.sequence for item in step(scheduler)] == [asked]
    assert (text.cache, text.num_pages) == (None, 0)
    step(scheduler)
    scheduler.remove(asked, keeps_prefix=False)

    again = [step(scheduler)[0] for _ in range(3)]
    assert [(item.start, item.wanted) for item in again] == [(0, 0), (128, 128), (256, 44)]


def test_no_prefix_is_shared_beyond_the_logits_that_are_wanted() -> None:
    """Logits of the prompt come from reading it."""
    scheduler = Scheduler()
    first = make_sequence(100, max_tokens=1)
    scheduler.add(first)
    finish(scheduler, first)
    echoing, late = make_sequence(100), make_sequence(100)
    echoing.logits_from, late.logits_from = 0, 60
    for sequence in (echoing, late):
        scheduler.add(sequence)
    work = {item.sequence: item for item in scheduler.schedule()}

    assert (work[echoing].start, work[echoing].wanted) == (0, 100)
    assert (work[late].start, work[late].wanted) == (60, 40)


@pytest.mark.parametrize("seed", range(8))
def test_any_traffic_comes_to_its_end_without_losing_pages_or_tokens(seed: int) -> None:
    """Random prompts, some alike, some cancelled, in a cache that is too small for all of them."""
    random_ = random.Random(seed)
    scheduler = Scheduler(
        max_num_sequences=5, token_budget=40, sizes=PageSizes(total=24, per_sequence=2)
    )
    fed: dict[Sequence, list[int]] = {}
    waiting = [
        Sequence(
            [random_.choice([0, 1])] * random_.randint(1, 120) + [2] * random_.randint(0, 60),
            SamplingParams(max_tokens=random_.randint(1, 60)),
        )
        for _ in range(40)
    ]
    alive: dict[Sequence, None] = {}  # in order, so that a seed repeats
    for _ in range(20_000):
        if waiting and random_.random() < 0.2:
            sequence = waiting.pop()
            alive[sequence] = None
            scheduler.add(sequence)
        for item in step(scheduler):
            fed[item.sequence] = item.sequence.token_ids[: item.start] + item.token_ids
            assert fed[item.sequence] == item.sequence.token_ids[: item.sequence.num_computed]
        for sequence in list(alive):
            done = len(sequence.output_ids) >= sequence.params.max_tokens
            if done or random_.random() < 0.001:
                scheduler.remove(sequence)
                del alive[sequence]
        held = sum(sequence.num_pages for sequence in alive)
        assert held <= scheduler.pages.used <= scheduler.pages.sizes.total
        if not waiting and not alive:
            break
    assert not waiting
    assert not alive
    assert scheduler.counts.preemptions
    assert scheduler.counts.shared_tokens
    # Whatever is still taken belongs to prefixes, which give it all back.
    full = make_sequence(scheduler.pages.sizes.longest - 1, max_tokens=1)
    full.prompt_ids[0] = 9
    scheduler.add(full)
    finish(scheduler, full)


def test_the_budget_counts_right() -> None:
    """More than there is cannot be taken, more than was taken cannot be given back."""
    budget = PageBudget(PageSizes(total=3, per_sequence=1))
    assert [budget.sizes.needed(count) for count in (0, 1, 16, 17)] == [0, 2, 2, 3]
    assert budget.sizes.longest == 2 * PAGE_TOKENS
    assert not budget.take(4)
    assert budget.take(3)
    budget.give_back(1)
    with pytest.raises(ValueError, match="3 pages given back of 2 taken"):
        budget.give_back(3)
