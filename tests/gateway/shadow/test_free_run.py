"""What a free run asks the reference, and what it sees of an answer; refusals and statistics."""

import math
from fractions import Fraction
from itertools import product
from typing import Any

import pytest

from gateway.shadow.answer import Answer
from gateway.shadow.binomial import interval, two_sided
from gateway.shadow.free_run import MAX_TOKENS, ask_again, judge
from gateway.shadow.pairs import LengthRatio, PairedCheck
from gateway.shadow.refusal import is_refusal

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def test_what_is_asked_again() -> None:
    """Messages, tools, form, sampling and seed stay; the reply's form and the sender do not."""
    kept = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "temperature": 0.7,
        "seed": 3,
        "tools": [],
        "response_format": {"type": "json_object"},
        "stop": ["x"],
    }
    dropped = {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 3,
        "user": "u",
        "metadata": {"tenant": "blue"},
        "max_completion_tokens": 500,
        "store": True,
        "n": 1,
    }
    found = ask_again({**kept, **dropped}, 20)
    assert found is not None
    assert found.path == "/v1/chat/completions"
    assert found.fields == {**kept, "max_tokens": 40, "stream": False}


@pytest.mark.parametrize(
    ("fields", "num_served", "limit"),
    [
        (CHAT, 20, 40),
        (CHAT, 200, MAX_TOKENS),
        (CHAT | {"max_tokens": 20}, 20, 20),
        (CHAT | {"max_completion_tokens": 30}, 20, 30),
        (CHAT | {"max_tokens": None}, 1, 2),
        ({"prompt": "Hi"}, 16, 16),  # OpenAI's limit of completions, though nobody said it
        ({"prompt": [1, 2], "max_tokens": 30}, 16, 30),
    ],
)
def test_limits(fields: dict[str, Any], num_served: int, limit: int) -> None:
    """The least of the client's limit, twice the served answer and 256."""
    found = ask_again(fields, num_served)
    assert found is not None
    assert (found.limit, found.fields["max_tokens"]) == (limit, limit)
    assert found.path == ("/v1/completions" if "prompt" in fields else "/v1/chat/completions")


def test_what_is_not_asked_again() -> None:
    """Pictures, and what is too long to be kept; a minimum follows the limit."""
    picture = [{"type": "image_url", "image_url": {"url": "data:"}}]
    assert ask_again({"messages": [{"role": "user", "content": picture}]}, 5) is None
    assert ask_again(CHAT | {"response_format": {"x": "y" * 300_000}}, 5) is None
    found = ask_again(CHAT | {"min_tokens": 100}, 5)
    assert found is not None
    assert found.fields["min_tokens"] == 10


@pytest.mark.parametrize(
    ("answer", "num_tokens", "expected"),
    [
        (Answer("Fine.", (), "stop"), 5, {"finish": True, "refusal": True}),
        (Answer("Fine", (), "length"), 10, {"finish": False, "refusal": True}),
        (Answer("Fine", (), "stop"), 11, {"finish": False, "refusal": True}),
        (Answer("Fine", (), ""), 5, {"finish": False, "refusal": True}),
        (Answer("I can't help with that.", (), "stop"), 6, {"finish": True, "refusal": False}),
        (Answer("", (), "stop"), 0, {"finish": True}),
    ],
)
def test_what_is_seen_of_an_answer(
    answer: Answer, num_tokens: int, expected: dict[str, bool]
) -> None:
    """Beside the checks of every answer: whether it ended within the limit, and declined."""
    side = judge(answer, {}, num_tokens=num_tokens, limit=10)
    found = {name: side.checks[name] for name in ("finish", "refusal") if name in side.checks}
    assert found == expected
    assert side.num_tokens == min(num_tokens, 10)
    assert side.checks.keys() >= {"empty", "repetition"}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I\u2019m sorry, I can\u2019t help with this request.",
        "Sorry, I cannot provide instructions for that.",
        "As an AI language model, I cannot write malware.",
        "I am unable to help you with that.",
        "Unfortunately, I'm not able to share it.",
        "I won't do that.",
        "I must decline.",
        "\n\n**I cannot directly answer this.",
        "I apologize, but as an AI developed by somebody, I can't discuss this.",
    ],
)
def test_refusals_are_seen(text: str) -> None:
    """The usual ways to decline at the beginning of an answer."""
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris.",
        "I'm sorry to hear that. Here is what you can do.",
        "I can help with that.",
        "I cannot believe how good this is!",
        "I can't wait to show you.",
        "Unfortunately, the capital moved.",
        "Sure! I cannot stress enough that this is safe.",
        "As an AI language model, I was trained on text.",
        "The doctor said: I cannot help with that.",
        "I will not lie: it is hard.",
    ],
)
def test_no_refusal(text: str) -> None:
    """Words of refusals that decline nothing, and such as come later."""
    assert not is_refusal(text)


def at_least(successes: int, trials: int, chance: float) -> float:
    """Return the probability of so many successes or more."""
    return math.fsum(
        math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k)
        for k in range(successes, trials + 1)
    )


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (1, 5), (3, 40), (250, 400)])
def test_intervals_are_exact(successes: int, trials: int) -> None:
    """At each bound the seen count, or a more extreme one, has half of the error."""
    low, high = interval(successes, trials, 0.05)
    if successes:
        assert at_least(successes, trials, low) == pytest.approx(0.025, rel=1e-6)
    else:
        assert low == 0
    if successes < trials:
        assert 1 - at_least(successes + 1, trials, high) == pytest.approx(0.025, rel=1e-6)
    else:
        assert high == 1


@pytest.mark.parametrize("trials", [0, 1, 2, 9, 10, 60])
def test_mcnemar_is_exact(trials: int) -> None:
    """The p-value is twice the smaller tail of a fair coin, at most 1."""
    for successes in range(trials + 1):
        fewer = min(successes, trials - successes)
        tail = sum(math.comb(trials, k) for k in range(fewer + 1))
        expected = min(Fraction(1), Fraction(2 * tail, 2**trials))
        assert two_sided(successes, trials) == pytest.approx(float(expected), rel=1e-9)


def test_large_counts() -> None:
    """A million pairs take no longer and stay sound."""
    low, high = interval(1000, 1_000_000, 0.05)
    assert 0.00093 < low < 0.001 < high < 0.00107
    assert two_sided(499_000, 1_000_000) == pytest.approx(0.0455, abs=0.0005)


def test_pairs_count_who_failed() -> None:
    """The four cells, both rates and their difference follow from the pairs."""
    check = PairedCheck()
    cells = [(True, True)] * 5 + [(False, True)] * 3 + [(True, False)] * 1 + [(False, False)] * 1
    for variant, full in cells:
        check.add(variant=variant, full=full)
    found = check.as_json()
    assert (found["pairs"], found["both_failed"]) == (10, 1)
    assert (found["only_variant_failed"], found["only_full_failed"]) == (3, 1)
    assert (found["variant_rate"], found["full_rate"]) == (0.4, 0.2)
    assert found["difference"] == pytest.approx(0.2)
    assert found["p_value"] == pytest.approx(0.625)
    assert found["difference_low"] < 0 < 0.2 < found["difference_high"] <= 1


def test_the_interval_of_the_difference_covers() -> None:
    """Over every outcome of a small experiment the true difference is inside often enough."""
    trials = 12
    for variant_alone, full_alone in ((0.1, 0.1), (0.3, 0.05), (0.0, 0.4), (0.6, 0.3)):
        missed = 0.0
        for b, c in product(range(trials + 1), repeat=2):
            if b + c > trials:
                continue
            rest = trials - b - c
            chance = float(math.comb(trials, b) * math.comb(trials - b, c))
            chance *= variant_alone**b * full_alone**c * (1 - variant_alone - full_alone) ** rest
            low, high = PairedCheck(trials, 0, b, c).difference()
            true = variant_alone - full_alone
            missed += chance * (not low - 1e-12 <= true <= high + 1e-12)
        assert missed <= 0.05


def test_the_interval_excludes_zero_with_evidence() -> None:
    """Thirty failures on one side and none on the other are no chance."""
    low, high = PairedCheck(100, 0, 30, 0).difference()
    assert 0.1 < low < 0.3 < high < 0.5
    assert PairedCheck(100, 0, 0, 0).difference()[1] > 0.03


def test_lengths() -> None:
    """The geometric mean of the ratios, with its interval from the second pair on."""
    lengths = LengthRatio()
    lengths.add(20, 10)
    assert lengths.as_json()["ratio"] == pytest.approx(2)
    assert lengths.as_json()["ratio_low"] is None
    lengths.add(5, 10)
    found = lengths.as_json()
    assert (found["variant_tokens"], found["full_tokens"]) == (25, 20)
    assert found["ratio"] == pytest.approx(1)
    half = 1.96 * math.log(2)
    assert found["ratio_high"] == pytest.approx(math.exp(half))
    assert found["ratio_low"] == pytest.approx(math.exp(-half))
    lengths.add(0, 0)  # no answer on either side is no division by zero
    assert lengths.as_json()["ratio"] == pytest.approx(1)
