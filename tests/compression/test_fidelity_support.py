"""Divergence where only the likeliest tokens are known."""

import math

import pytest
import torch

from compression import fidelity_support
from compression.fidelity import score_tokens
from compression.fidelity_support import Told, score_on_support, score_told


def logits(rows: int, columns: int, *, seed: int) -> torch.Tensor:
    """Return reproducible float32 logits."""
    return 3 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def told_of(compressed: torch.Tensor, targets: list[int], top: int) -> Told:
    """Return what an engine with these logits would tell: its top tokens and the true one."""
    rows = []
    log_q = torch.log_softmax(compressed.double(), dim=-1)
    for row, target in zip(log_q, targets, strict=True):
        ids = [*row.topk(top).indices.tolist(), target]
        rows.append({token: float(row[token]) for token in ids})
    return Told(rows, compressed.argmax(dim=-1).tolist())


FULL = logits(30, 60, seed=1)
OTHER = FULL + 0.7 * logits(30, 60, seed=2)
TARGETS = [(7 * index) % 60 for index in range(30)]


@pytest.mark.parametrize("top", [1, 5, 59])
def test_both_ways_agree(top: int) -> None:
    """An engine's own words, and logits on the tokens that it told of, give the same scores."""
    told = told_of(OTHER, TARGETS, top)
    by_words = score_told(FULL, told, TARGETS)
    by_logits = score_on_support(FULL, OTHER, told, TARGETS)
    exact = score_tokens(FULL, OTHER, TARGETS)
    torch.testing.assert_close(by_words.kld, by_logits.kld, rtol=1e-9, atol=1e-9)
    for scores in (by_words, by_logits):
        assert torch.equal(scores.same_top, exact.same_top)
        torch.testing.assert_close(scores.nll_full, exact.nll_full)
        torch.testing.assert_close(scores.nll, exact.nll)


def test_it_is_a_lower_bound_that_grows_with_the_support() -> None:
    """More tokens known can only show more of the divergence, up to all of it."""
    exact = score_tokens(FULL, OTHER, TARGETS).kld
    before = torch.zeros(30, dtype=torch.float64)
    for top in (1, 3, 10, 30, 60):
        found = score_told(FULL, told_of(OTHER, TARGETS, top), TARGETS).kld
        assert bool((found >= before - 1e-6).all())
        assert bool((found <= exact + 1e-6).all())
        before = found
    torch.testing.assert_close(before, exact, rtol=0, atol=2e-6)


def test_two_coins_and_a_rest() -> None:
    """Worked out by hand: one token of four known, the others together."""
    full = torch.log(torch.tensor([[0.5, 0.3, 0.1, 0.1]]))
    told = Told([{0: math.log(0.8)}], [0])
    expected = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert score_told(full, told, [0]).kld.item() == pytest.approx(expected, rel=1e-6)


def test_nothing_told_beyond_one_is_not_infinite() -> None:
    """An engine that is certain to the last digit leaves a rest as small as float32 can tell."""
    full = torch.log(torch.tensor([[0.9, 0.1]]))
    found = score_told(full, Told([{0: 0.0}], [0]), [0]).kld.item()
    assert found == pytest.approx(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 1e-6), rel=1e-5)


def test_the_same_model_is_no_distance_away() -> None:
    """Against itself every position is 0 but for the bin's limit."""
    told = told_of(FULL, TARGETS, 8)
    assert float(score_on_support(FULL, FULL, told, TARGETS).kld.max()) < 1e-12
    assert float(score_told(FULL, told, TARGETS).kld.max()) < 1e-12


def test_rows_of_different_widths_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A true token that is among the likeliest makes a row shorter; nothing changes by cutting."""
    told = told_of(OTHER, TARGETS, 5)
    assert {len(row) for row in told.logprobs} == {5, 6}
    whole = score_told(FULL, told, TARGETS), score_on_support(FULL, OTHER, told, TARGETS)
    monkeypatch.setattr(fidelity_support, "_CHUNK_BYTES", 8 * 60 * 7)
    cut = score_told(FULL, told, TARGETS), score_on_support(FULL, OTHER, told, TARGETS)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one.kld, other.kld)
        assert torch.equal(one.same_top, other.same_top)
        torch.testing.assert_close(one.nll, other.nll)
