"""Tests of token choice and log-probabilities against their definitions."""

import math
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
)

from gateway.engine.logprobs import prompt_logprobs, token_logprobs
from gateway.engine.sampler import Sampler, sample
from gateway.engine.sequence import SamplingParams


def draw(logits: torch.Tensor, num: int, **settings: Any) -> list[int]:
    """Return ``num`` tokens drawn from the same logits."""
    sampler = Sampler(SamplingParams(max_tokens=num, **settings))
    found = [choose([sampler], logits.unsqueeze(0))[0] for _ in range(num)]
    return [token for token in found if token is not None]


def choose(samplers: list[Sampler], logits: torch.Tensor) -> list[int | None]:
    """Return one token a row, as a step of the loop does."""
    peaks, peak_ids = (column.tolist() for column in logits.max(dim=1))
    return sample(samplers, logits, peaks, peak_ids)


def frequencies(tokens: list[int], size: int) -> torch.Tensor:
    """Return how often each id was drawn, as a share."""
    return torch.bincount(torch.tensor(tokens), minlength=size) / len(tokens)


LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5, -30.0])


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}])
def test_greedy_takes_the_most_probable(settings: dict[str, float]) -> None:
    """Temperature 0, or the top 1, always gives the maximum."""
    assert set(draw(LOGITS, 20, **settings)) == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_tempered_distribution(temperature: float) -> None:
    """Drawn frequencies agree with softmax(logits / temperature)."""
    tokens = draw(LOGITS, 8000, temperature=temperature, seed=1)

    expected = (LOGITS / temperature).softmax(0)
    assert torch.allclose(frequencies(tokens, 6), expected, atol=0.02)


def test_top_k_keeps_the_k_most_probable() -> None:
    """Only the k largest are drawn, in the proportions they had."""
    tokens = draw(LOGITS, 8000, top_k=3, seed=2)

    expected = torch.zeros(6)
    expected[[1, 4, 2]] = LOGITS[[1, 4, 2]].softmax(0)
    assert torch.allclose(frequencies(tokens, 6), expected, atol=0.02)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, {1}), (0.4, {1}), (0.6, {1, 4}), (0.8, {1, 4, 2}), (0.92, {1, 4, 2, 0})],
)
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: set[int]) -> None:
    """The nucleus is the shortest prefix, most probable first, whose mass is at least p."""
    ranked, ids = LOGITS.softmax(0).sort(descending=True)
    before = ranked.cumsum(0) - ranked
    assert {int(i) for i in ids[(before < top_p) | (before == 0)]} == kept  # the claim's own check

    assert set(draw(LOGITS, 3000, top_p=top_p, seed=3)) == kept


@pytest.mark.parametrize("spread", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("top_k", [2, 300, 5000, 30_000])
def test_top_k_of_any_size_is_exact_in_a_large_vocabulary(spread: float, top_k: int) -> None:
    """The k most probable are found whether they lie near the peak or far below it."""
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * spread
    ranked = logits.softmax(0).sort(descending=True).values

    tokens = draw(logits, 100, top_k=top_k, temperature=2.0, seed=5)

    lowest = float(ranked[min(top_k, 20_000) - 1])
    probabilities = logits.softmax(0)
    assert all(float(probabilities[token]) >= lowest for token in tokens)
    assert len(set(tokens)) <= top_k


def test_top_p_counts_within_top_k() -> None:
    """With both limits, p is a share of what top-k left."""
    logits = torch.zeros(10)

    assert len(set(draw(logits, 2000, top_k=4, top_p=0.5, seed=4))) == 2


@pytest.mark.parametrize("spread", [0.0, 0.3, 4.0])
def test_a_nucleus_of_any_size_is_exact_in_a_large_vocabulary(spread: float) -> None:
    """Ranking few candidates first never changes the nucleus, however flat the distribution."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, generator=generator) * spread
    ranked, ids = logits.softmax(0).sort(descending=True, stable=True)
    num_kept = int((ranked.cumsum(0, dtype=torch.float64) < 0.9).sum()) + 1
    lowest = float(logits[ids[num_kept - 1]])

    tokens = draw(logits, 400, top_p=0.9, seed=5)

    assert all(float(logits[token]) >= lowest for token in tokens)
    assert len(set(tokens)) > min(num_kept, 400) // 4


def test_equal_seeds_give_equal_tokens_whatever_else_draws() -> None:
    """A request's generator is its own: global draws in between change nothing."""
    logits = torch.randn(1000)
    first = draw(logits, 50, seed=11, top_p=0.95)
    torch.rand(13)

    assert draw(logits, 50, seed=11, top_p=0.95) == first
    assert draw(logits, 50, seed=12, top_p=0.95) != first


def test_without_a_seed_answers_differ() -> None:
    """No seed means a fresh one per request."""
    logits = torch.zeros(1000)

    assert draw(logits, 20) != draw(logits, 20)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**63 - 1])
def test_every_seed_of_the_wire_is_accepted(seed: int) -> None:
    """The whole signed 64-bit range seeds a generator."""
    assert draw(LOGITS, 5, seed=seed) == draw(LOGITS, 5, seed=seed)


def test_tiny_temperatures_and_huge_logits_do_not_overflow() -> None:
    """Extreme finite values still give the maximum, not NaN."""
    logits = torch.tensor([3e38, -3e38, 0.0])

    assert draw(logits, 5, temperature=1e-4) == [0] * 5
    assert draw(logits, 5, temperature=1e-300) == [0] * 5


def test_logprobs_are_the_log_softmax() -> None:
    """Chosen and top log-probabilities equal log_softmax of the raw logits."""
    logits = torch.randn(500)
    expected = logits.log_softmax(0)

    [found] = token_logprobs(logits.unsqueeze(0), [17], [5])

    assert found.logprob == pytest.approx(float(expected[17]), abs=1e-5)
    values, ids = expected.topk(5)
    assert [token_id for token_id, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_logprobs_never_exceed_zero() -> None:
    """Rounding cannot make a certain token more than certain."""
    logits = torch.full((8,), -40.0)
    logits[3] = 60.0

    certain, bare = token_logprobs(logits.expand(2, -1), [3, 3], [1, 0])
    assert certain.logprob == 0.0
    assert math.copysign(1, certain.top[0][1]) == 1
    assert bare.top == ()


@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
def test_min_p_is_transformers(min_p: float) -> None:
    """Candidates are those that transformers' own processor keeps, in their proportions."""
    kept = MinPLogitsWarper(min_p)(torch.zeros(1, 1), LOGITS.unsqueeze(0).clone())[0]

    tokens = draw(LOGITS, 2000, min_p=min_p, seed=6)

    assert torch.allclose(frequencies(tokens, 6), kept.softmax(0), atol=0.04)


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_min_p_is_exact_in_a_large_vocabulary(spread: float) -> None:
    """More candidates than are ranked first are found, and none beyond the limit."""
    logits = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * spread
    probabilities = logits.softmax(0)
    kept = set((probabilities >= 0.3 * probabilities.max()).nonzero().flatten().tolist())

    tokens = draw(logits, 300, min_p=0.3, seed=7)

    assert set(tokens) <= kept
    assert len(kept) > 300
    assert len(set(tokens)) > 200


def edited(
    logits: torch.Tensor, params: SamplingParams, *, prompt: list[int], answer: list[int]
) -> torch.Tensor:
    """Return the logits as a sampler sees them after an answer so far."""
    sampler = Sampler(params, prompt_ids=prompt, eos_ids=frozenset({2}))
    for token_id in answer:
        sampler.push(token_id)
    row = logits.clone()
    sampler.edit(row)
    return row


def test_repetition_penalty_is_transformers() -> None:
    """Prompt and answer are penalized as transformers' own processor does it."""
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 4
    prompt, answer = [5, 6, 6, 250], [7, 5, 7]

    row = edited(logits, SamplingParams(9, repetition_penalty=1.7), prompt=prompt, answer=answer)

    reference = RepetitionPenaltyLogitsProcessor(1.7)
    expected = reference(torch.tensor([prompt + answer]), logits.unsqueeze(0).clone())[0]
    assert torch.equal(row, expected)


def test_presence_and_frequency_penalties_count_the_answer() -> None:
    """OpenAI's formula: each token of the answer loses presence + count * frequency."""
    logits = torch.randn(300, generator=torch.Generator().manual_seed(2))
    answer = [
        int(i) for i in torch.randint(0, 90, (200,), generator=torch.Generator().manual_seed(5))
    ]
    params = SamplingParams(9, presence_penalty=0.7, frequency_penalty=-0.3)

    row = edited(logits, params, prompt=[1, 5], answer=answer)

    counts = torch.bincount(torch.tensor(answer), minlength=300)
    expected = logits - 0.7 * (counts > 0) + 0.3 * counts
    assert torch.allclose(row, expected, atol=1e-5)


def test_biases_are_added_and_ban_or_force() -> None:
    """-100 and 100 decide against any usual logits; others shift."""
    params = SamplingParams(9, temperature=0, logit_bias=((1, -100), (3, 2.5)))
    row = edited(LOGITS, params, prompt=[], answer=[])

    assert torch.equal(row - LOGITS, torch.tensor([0.0, -100, 0, 2.5, 0, 0]))
    assert draw(LOGITS, 3, temperature=0.0, logit_bias=((5, 100),)) == [5] * 3


def test_min_tokens_bans_every_end() -> None:
    """End and stop tokens are impossible until so many tokens were chosen."""
    params = SamplingParams(9, min_tokens=2, stop_token_ids=frozenset({4}))
    for answer, is_banned in (([], True), ([1], True), ([1, 1], False)):
        row = edited(LOGITS, params, prompt=[], answer=answer)
        assert (row[[2, 4]] == float("-inf")).tolist() == [is_banned] * 2
        assert torch.isfinite(row[[0, 1, 3, 5]]).all()


def test_a_batch_samples_each_row_as_if_it_were_alone() -> None:
    """Whatever stands beside it, a row gets the tokens of its own parameters and seed."""
    generator = torch.Generator().manual_seed(3)
    steps = [torch.randn(7, 5000, generator=generator) * 3 for _ in range(6)]
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"seed": 1},
        {"seed": 2, "top_p": 0.9, "temperature": 0.7},
        {"seed": 3, "top_k": 5},
        {"seed": 4, "top_k": 300, "top_p": 0.5},
        {"seed": 5, "min_p": 0.1, "presence_penalty": 1.0},
        {"temperature": 0.0, "repetition_penalty": 1.3},
    ]

    def make() -> list[Sampler]:
        return [Sampler(SamplingParams(9, **kind)) for kind in kinds]

    def run(rows: list[int]) -> list[list[int | None]]:
        samplers = [sampler for row, sampler in enumerate(make()) if row in rows]
        found = []
        for logits in steps:
            raw = logits[rows].clone()
            found.append(choose(samplers, raw))
            assert torch.equal(raw, logits[rows])  # log-probabilities need them unchanged
            for sampler, token in zip(samplers, found[-1], strict=True):
                assert token is not None
                sampler.push(token)
        return [list(column) for column in zip(*found, strict=True)]

    together = run(list(range(7)))
    assert together == [run([row])[0] for row in range(7)]


def test_a_row_without_any_allowed_token_says_so() -> None:
    """Nothing is drawn from a row of bans; the rows beside it are."""
    banned = Sampler(SamplingParams(9, min_tokens=1), eos_ids=frozenset(range(6)))

    assert choose([banned, Sampler(SamplingParams(9, temperature=0))], LOGITS.expand(2, -1)) == [
        None,
        1,
    ]


def test_prompt_logprobs_have_ranks() -> None:
    """Rank 1 is the most probable token; ties count as one rank."""
    logits = torch.randn(150, 40, generator=torch.Generator().manual_seed(4))
    ids = [row % 40 for row in range(150)]

    found = prompt_logprobs(logits, ids, 2)

    expected = logits.log_softmax(1)
    order = logits.argsort(1, descending=True).tolist()
    for row, entry in enumerate(found):
        assert entry.logprob == pytest.approx(float(expected[row, ids[row]]), abs=1e-5)
        assert entry.rank == order[row].index(ids[row]) + 1
        assert [token for token, _ in entry.top] == order[row][:2]
