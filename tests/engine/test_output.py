"""Tests of where an answer ends and which log-probabilities leave with which text."""

import random

import pytest

from gateway.engine.detokenizer import Vocabulary, from_byte_level
from gateway.engine.output import Output
from gateway.engine.sequence import Delta, SamplingParams, TokenLogprob
from gateway.engine.stopping import StopStrings

PIECES = {i: chr(ord("a") + i) for i in range(26)} | {30: "ab", 31: "abc"}
EOS = 99


def run(
    token_ids: list[int], *, stop: tuple[str, ...] = (), max_tokens: int = 100
) -> tuple[list[Delta | None], Output]:
    """Push tokens until the answer ends; ids 40 and 41 are the two bytes of ``é``."""
    vocabulary = Vocabulary(
        (PIECES | {40: "Ã", 41: "©"}).get, decode=from_byte_level, added={}, special_ids=frozenset()
    )
    params = SamplingParams(max_tokens=max_tokens, stop=stop)
    output = Output(params, vocabulary=vocabulary, eos_ids=frozenset({EOS, 98}))
    deltas: list[Delta | None] = []
    for token_id in token_ids:
        deltas.append(output.push(token_id, TokenLogprob(token_id, -1.0)))
        last = deltas[-1]
        if last is not None and last.finish_reason is not None:
            break
    return deltas, output


def text_of(deltas: list[Delta | None]) -> str:
    """Return the whole text."""
    return "".join(delta.text for delta in deltas if delta is not None)


def ids_of(deltas: list[Delta | None]) -> list[int]:
    """Return the ids of all log-probabilities sent."""
    return [entry.token_id for delta in deltas if delta for entry in delta.logprobs]


@pytest.mark.parametrize("eos", [EOS, 98])
def test_every_end_token_stops(eos: int) -> None:
    """Any of several end tokens ends the answer, is counted, and has no text or log-prob."""
    deltas, output = run([0, 1, eos])

    assert deltas[-1] == Delta("", (), "stop")
    assert (text_of(deltas), ids_of(deltas), output.num_tokens) == ("ab", [0, 1], 3)


def test_max_tokens_ends_with_length() -> None:
    """The token that fills the limit is still sent."""
    deltas, _ = run([0, 1, 2, 3], max_tokens=3)

    assert text_of(deltas) == "abc"
    assert deltas[-1] is not None
    assert deltas[-1].finish_reason == "length"


def test_a_stop_string_across_tokens_is_cut_off_with_its_log_probabilities() -> None:
    """Text from the stop string on is never sent, nor are tokens that lie within it."""
    deltas, _ = run([23, 0, 1, 2, 24], stop=("abc",))

    assert (text_of(deltas), ids_of(deltas)) == ("x", [23])
    assert deltas[1:3] == [None, None]
    assert deltas[-1] is not None
    assert deltas[-1].finish_reason == "stop"


def test_held_back_text_comes_when_it_cannot_stop_any_more() -> None:
    """What looked like a stop string is sent with the token that rules it out."""
    deltas, _ = run([0, 1, 23], stop=("abc",))

    assert [delta and delta.text for delta in deltas] == [None, None, "abx"]
    assert ids_of(deltas) == [0, 1, 23]


@pytest.mark.parametrize("ending", [[EOS], []])
def test_held_back_text_is_sent_at_the_end(ending: list[int]) -> None:
    """An answer that ends within a possible stop string keeps that text."""
    deltas, _ = run([23, 0, 1, *ending], stop=("abc",), max_tokens=100 if ending else 3)

    assert (text_of(deltas), ids_of(deltas)) == ("xab", [23, 0, 1])


def test_half_a_character_is_held_and_then_one() -> None:
    """Two tokens of one character leave together."""
    deltas, _ = run([0, 40, 41])

    assert [delta and delta.text for delta in deltas] == ["a", None, "é"]
    assert ids_of(deltas) == [0, 40, 41]


def test_an_answer_cut_within_a_character_says_nothing_of_it() -> None:
    """No replacement character at the limit; the token's log-probability is still there."""
    deltas, _ = run([0, 40], max_tokens=2)

    assert (text_of(deltas), ids_of(deltas)) == ("a", [0, 40])


def test_stop_strings_agree_with_searching_the_whole_text() -> None:
    """For random texts, stops and borders: sent text = text before the first stop string."""
    chooser = random.Random(1)
    for _ in range(3000):
        text = "".join(chooser.choices("ab", k=chooser.randrange(12)))
        stops = tuple(
            "".join(chooser.choices("ab", k=chooser.randrange(1, 5)))
            for _ in range(chooser.randrange(1, 4))
        )
        finder = StopStrings(stops)
        sent, rest, is_stopped = "", text, False
        while rest and not is_stopped:
            size = chooser.randrange(1, 4)
            released, is_stopped = finder.push(rest[:size])
            sent, rest = sent + released, rest[size:]
        if not is_stopped:
            sent += finder.flush()

        # The one complete first counts: a stream cannot wait for a longer one that began earlier.
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        assert is_stopped == bool(ends)
        if not ends:
            assert sent == text
        else:
            assert any(text.startswith(sent + stop) for stop in stops)
