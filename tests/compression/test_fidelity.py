"""The statistics of two blocks of logits."""

import json
import math
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
import torch

from compression import fidelity
from compression.bootstrap import interval, resampled_means
from compression.errors import FidelityError
from compression.fidelity import (
    TokenScores,
    pool,
    require_finite,
    score_tokens,
    summarize,
)
from compression.fidelity_statistics import GROUPS, STATISTICS


def logits(rows: int, columns: int, *, seed: int, scale: float = 3.0) -> torch.Tensor:
    """Return reproducible float32 logits."""
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def brute_force(full: torch.Tensor, other: torch.Tensor, targets: list[int]) -> TokenScores:
    """Return the scores by plain Python sums."""

    def probabilities(row: list[float]) -> list[float]:
        top = max(row)
        weights = [math.exp(value - top) for value in row]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    kld, same, nll_full, nll = [], [], [], []
    for left, right, target in zip(full.tolist(), other.tolist(), targets, strict=True):
        p, q = probabilities(left), probabilities(right)
        kld.append(math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        same.append(left.index(max(left)) == right.index(max(right)))
        nll_full.append(-math.log(p[target]))
        nll.append(-math.log(q[target]))
    double = torch.float64
    return TokenScores(
        torch.tensor(kld, dtype=double),
        torch.tensor(same),
        torch.tensor(nll_full, dtype=double),
        torch.tensor(nll, dtype=double),
    )


def test_equals_brute_force() -> None:
    """All four scores equal a plain float64 computation."""
    full = logits(40, 50, seed=1)
    other = full + 0.5 * logits(40, 50, seed=2)
    targets = [(7 * index) % 50 for index in range(40)]
    got, expected = score_tokens(full, other, targets), brute_force(full, other, targets)
    torch.testing.assert_close(got.kld, expected.kld, rtol=1e-11, atol=1e-13)
    assert torch.equal(got.same_top, expected.same_top)
    assert 0 < int(got.same_top.sum()) < 40
    torch.testing.assert_close(got.nll_full, expected.nll_full, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.nll, expected.nll, rtol=1e-12, atol=1e-12)


def test_known_divergence_of_two_coins() -> None:
    """KL((0.5, 0.5) || (0.9, 0.1)) is ln(5/3) nats, and the order of the arguments matters."""
    fair = torch.log(torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    bent = torch.log(torch.tensor([[0.9, 0.1]], dtype=torch.float64))
    assert score_tokens(fair, bent, [0]).kld.item() == pytest.approx(math.log(5 / 3), rel=1e-12)
    reverse = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert score_tokens(bent, fair, [0]).kld.item() == pytest.approx(reverse, rel=1e-12)


def test_identical_logits_give_exactly_nothing() -> None:
    """The same logits give a divergence of exactly 0, agreement 1 and a ratio of exactly 1."""
    full = logits(30, 999, seed=3, scale=20.0)
    result = summarize(score_tokens(full, full.clone(), [5] * 30))
    assert (result.kld_mean, result.kld_p99, result.kld_max, result.kld_mean_se) == (0, 0, 0, 0)
    assert (result.top1, result.top1_se, result.ppl_ratio, result.ppl_ratio_se) == (1, 0, 1, 0)
    assert (result.kld_mean_ci95, result.ppl_ratio_ci95) == ((0, 0), (1, 1))
    assert (result.delta_p_rms, result.delta_p_rms_se, result.ppl_difference_se) == (0, 0, 0)


def test_a_shift_of_all_logits_changes_nothing() -> None:
    """A constant added to a row of logits leaves the distribution as it was."""
    full = logits(20, 300, seed=4).double()
    result = score_tokens(full, full + 64.0, [1] * 20)
    assert float(result.kld.max()) < 1e-12
    assert float((result.nll - result.nll_full).abs().max()) < 1e-12


def test_never_negative() -> None:
    """Differences at the edge of float32 never make a divergence negative."""
    full = logits(200, 2000, seed=5, scale=10.0)
    other = full * (1 + 1e-7)
    assert float(score_tokens(full, other, [0] * 200).kld.min()) >= 0


def test_tiny_divergences_survive() -> None:
    """A divergence of about 1e-9 is measured to a thousandth: float32 would lose it."""
    full = logits(10, 1000, seed=6).double()
    step = 1e-4 * logits(10, 1000, seed=7).double()
    p = torch.softmax(full, dim=-1)
    second_order = 0.5 * ((p * step**2).sum(-1) - (p * step).sum(-1) ** 2)
    got = score_tokens(full, full + step, [0] * 10).kld
    torch.testing.assert_close(got, second_order, rtol=1e-3, atol=0.0)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores do not depend on how many rows are worked on at a time."""
    full, other = logits(33, 64, seed=8), logits(33, 64, seed=9)
    targets = list(range(33))
    whole = score_tokens(full, other, targets)
    monkeypatch.setattr(fidelity, "_CHUNK_BYTES", 5 * 8 * 64)
    parts = score_tokens(full, other, targets)
    for field in fields(TokenScores):
        assert torch.equal(getattr(whole, field.name), getattr(parts, field.name))


def test_extreme_logits_stay_finite() -> None:
    """Certainty of the wrong token gives large finite numbers, which JSON can hold."""
    full = torch.tensor([[1e5, 0.0], [0.0, 1e5], [1e5, 0.0]])
    result = summarize(score_tokens(full, -full, [0, 1, 0]))
    json.dumps(result.as_json(), allow_nan=False)
    assert result.kld_mean == pytest.approx(1e5)
    assert result.ppl_difference > 1e100
    assert result.ln_ppl_correlation is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_logits_are_refused(value: float) -> None:
    """One bad logit is refused with the recipe and the slice it came from."""
    block = torch.zeros(4, 5)
    require_finite(block, recipe="int4", slice_name="code")
    block[2, 3] = value
    with pytest.raises(FidelityError, match="'int4' gives non-finite logits on slice 'code'"):
        require_finite(block, recipe="int4", slice_name="code")


def test_shapes_must_belong_together() -> None:
    """Blocks of different shape, or targets that are too few, are refused."""
    with pytest.raises(ValueError, match="do not belong"):
        score_tokens(torch.zeros(4, 5), torch.zeros(4, 6), [0] * 4)
    with pytest.raises(ValueError, match="3 targets"):
        score_tokens(torch.zeros(4, 5), torch.zeros(4, 5), [0] * 3)


def scores(
    kld: list[float], same: list[bool], full: list[float], other: list[float]
) -> TokenScores:
    """Return hand-made scores."""
    double = torch.float64
    return TokenScores(
        torch.tensor(kld, dtype=double),
        torch.tensor(same),
        torch.tensor(full, dtype=double),
        torch.tensor(other, dtype=double),
    )


def test_statistics_by_hand() -> None:
    """Every statistic of four positions equals its value worked out by hand."""
    result = summarize(
        scores([0.0, 0.1, 0.2, 0.5], [True, True, True, False], [1, 2, 3, 4], [1.1, 2.3, 2.9, 4.5])
    )
    assert result.tokens == 4
    assert result.kld_mean == pytest.approx(0.2)
    assert result.kld_mean_se == pytest.approx(math.sqrt((0.04 + 0.01 + 0.0 + 0.09) / 3 / 4))
    assert result.kld_p99 == pytest.approx(0.2 + 0.97 * 0.3)
    assert result.kld_max == 0.5
    assert result.top1 == 0.75
    assert result.top1_se == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert result.ppl_full == pytest.approx(math.exp(2.5))
    assert result.ppl_ratio == pytest.approx(math.exp(0.2))
    spread = math.sqrt((0.01 + 0.01 + 0.09 + 0.09) / 3)
    assert result.ppl_ratio_se == pytest.approx(math.exp(0.2) * spread / 2)


def by_numpy(
    full: npt.NDArray[np.float64], other: npt.NDArray[np.float64], targets: list[int]
) -> dict[str, float]:
    """Return llama.cpp's statistics from sums of powers, as its own program has them."""

    def log_softmax(block: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        shifted = block - block.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))

    log_p, log_q = log_softmax(full), log_softmax(other)
    rows, count = np.arange(len(targets)), len(targets)
    base, nll = -log_p[rows, targets], -log_q[rows, targets]
    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    delta = np.exp(-nll) - np.exp(-base)
    same = float((log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean())

    def error(values: npt.NDArray[np.float64]) -> float:
        return float(np.sqrt((np.mean(values**2) - np.mean(values) ** 2) / (count - 1)))

    covariance = (np.mean(nll * base) - nll.mean() * base.mean()) / (count - 1)
    ln_error = math.sqrt(error(nll) ** 2 + error(base) ** 2 - 2 * covariance)
    ppl, ppl_base = math.exp(nll.mean()), math.exp(base.mean())
    squares = (ppl * error(nll)) ** 2 + (ppl_base * error(base)) ** 2
    rms = math.sqrt(np.mean(delta**2))
    found = {
        "ppl": ppl, "ppl_se": ppl * error(nll),
        "ppl_full": ppl_base, "ppl_full_se": ppl_base * error(base),
        "ln_ppl_correlation": covariance / (error(nll) * error(base)),
        "ln_ppl_ratio": nll.mean() - base.mean(), "ln_ppl_ratio_se": ln_error,
        "ppl_ratio": ppl / ppl_base, "ppl_ratio_se": ppl / ppl_base * ln_error,
        "ppl_difference": ppl - ppl_base,
        "ppl_difference_se": math.sqrt(squares - 2 * ppl * ppl_base * covariance),
        "kld_mean": kld.mean(), "kld_mean_se": error(kld),
        "delta_p_mean": delta.mean(), "delta_p_mean_se": error(delta),
        "delta_p_rms": rms, "delta_p_rms_se": 0.5 / rms * error(delta**2),
        "top1": same, "top1_se": math.sqrt(same * (1 - same) / (count - 1)),
    }  # fmt: skip
    for name, values in (("kld", kld), ("delta_p", delta)):
        found |= {f"{name}_max": values.max(), f"{name}_min": values.min()}
        found[f"{name}_median"] = float(np.median(values))
        for level in (99.9, 99, 95, 90, 75, 25, 10, 5, 1, 0.1):
            key = f"{name}_p{level:g}".replace(".", "_")
            found[key] = float(np.percentile(values, level))
    return found


def test_every_statistic_equals_numpy() -> None:
    """All of llama.cpp's statistics and their errors equal a computation in numpy."""
    full = logits(701, 60, seed=20)
    other = full + 0.4 * logits(701, 60, seed=21)
    targets = [(11 * index) % 60 for index in range(701)]
    got = summarize(score_tokens(full, other, targets)).as_json()
    expected = by_numpy(full.double().numpy(), other.double().numpy(), targets)
    for statistic in STATISTICS:
        for key in (statistic.key, f"{statistic.key}_se")[: 1 + statistic.has_error]:
            assert got[key] == pytest.approx(expected[key], rel=1e-6, abs=1e-12), key
    assert len({got[statistic.key] for statistic in STATISTICS}) == len(STATISTICS)


def test_names_are_those_of_llama_cpp() -> None:
    """The table has every line that llama.cpp prints, once, in its order and its groups."""
    quantiles = ("Maximum", "99.9%", "99.0%", "95.0%", "90.0%", "Median", "10.0%", "5.0%", "1.0%")
    moves = (*quantiles[:5], "75.0%", "Median", "25.0%", *quantiles[6:])
    tail = ("0.1%", "Minimum")
    assert [statistic.name for statistic in STATISTICS] == [
        "Mean PPL(Q)", "Mean PPL(base)", "Cor(ln(PPL(Q)), ln(PPL(base)))",
        "Mean ln(PPL(Q)/PPL(base))", "Mean PPL(Q)/PPL(base)", "Mean PPL(Q)-PPL(base)",
        "Mean KLD", *(f"{each} KLD" for each in (*quantiles, *tail)),
        "Mean Δp", *(f"{each} Δp" for each in (*moves, *tail)),
        "RMS Δp", "Same top p",
    ]  # fmt: skip
    groups = [statistic.group for statistic in STATISTICS]
    assert groups == sorted(groups, key=GROUPS.index)


def test_shown_as_llama_cpp_shows_them() -> None:
    """Shares are in percent, errors stand behind, what is undefined says so."""
    full = logits(300, 20, seed=22)
    measured = summarize(score_tokens(full, full + logits(300, 20, seed=23), [3] * 300)).as_json()
    shown = {statistic.name: statistic.show(measured) for statistic in STATISTICS}
    assert shown["Mean KLD"] == f"{measured['kld_mean']:.6f} ± {measured['kld_mean_se']:.6f}"
    assert shown["Maximum KLD"] == f"{measured['kld_max']:.6f}"
    top = f"{100 * measured['top1']:.3f}% ± {100 * measured['top1_se']:.3f}%"
    assert shown["Same top p"] == top
    correlation = next(each for each in STATISTICS if each.key == "ln_ppl_correlation")
    assert correlation.show({"ln_ppl_correlation": None}) == "undefined"


def test_a_manifest_keeps_the_intervals() -> None:
    """The record of a slice has the figures of the statistics."""
    full = logits(200, 20, seed=24)
    result = summarize(score_tokens(full, full + logits(200, 20, seed=25), [3] * 200))
    record = result.record("code")
    kept = {key: value for key, value in record.model_dump().items() if key != "name"}
    assert record.name == "code"
    assert kept == {key: getattr(result, key) for key in kept}
    assert record.kld_mean_ci95[0] < record.kld_mean < record.kld_mean_ci95[1]
    assert record.top1_ci95[0] < record.top1 < record.top1_ci95[1]


def dependent(rows: int, *, seed: int) -> torch.Tensor:
    """Return values of mean 1 where each depends on the one before it, ``[rows, 1]``."""
    noise = torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = [float(noise[0])]
    for each in noise[1:].tolist():
        values.append(0.8 * values[-1] + 0.6 * each)
    return 1 + torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_intervals_know_that_tokens_depend() -> None:
    """Of dependent values 95 % intervals hold the truth about that often, naive ones do not."""
    hits = naive = 0
    for seed in range(100):
        values = dependent(1500, seed=seed)
        low, high = interval(resampled_means([values])[:, 0])
        hits += low < 1 < high
        naive += abs(float(values.mean()) - 1) < 1.96 * float(values.std()) / math.sqrt(1500)
    assert naive < 70
    assert 87 <= hits <= 100


def test_texts_are_resampled_each_on_its_own() -> None:
    """What differs between slices is no uncertainty of their mean; tokens weigh alike."""
    one, two = torch.full((300, 1), 1.0), torch.full((100, 1), 5.0)
    assert interval(resampled_means([one, two])[:, 0]) == pytest.approx((2.0, 2.0))
    low, high = interval(resampled_means([torch.cat([one, two])])[:, 0])
    assert high - low > 0.5


def test_resampling_is_reproducible_and_unbiased() -> None:
    """Equal values give equal intervals, and resampled means spread around the mean."""
    values = dependent(500, seed=7)
    means = resampled_means([values])
    assert torch.equal(means, resampled_means([values]))
    assert means.shape == (1000, 1)
    spread = float(means.std()) / math.sqrt(1000)
    assert abs(float(means.mean() - values.mean())) < 4 * spread


@pytest.mark.parametrize("count", [2, 7, 20])
def test_short_texts_have_intervals(count: int) -> None:
    """A text shorter than a block is resampled in shorter runs."""
    values = torch.arange(count, dtype=torch.float64).unsqueeze(1)
    low, high = interval(resampled_means([values])[:, 0])
    assert low < float(values.mean()) < high


def test_agreement_of_all_is_not_certainty() -> None:
    """When every top token agrees, the interval still depends on how many there were."""
    few, many = (
        summarize(scores([0.0] * count, [True] * count, [1.0] * count, [1.0] * count))
        for count in (20, 2000)
    )
    assert few.top1_ci95[1] == pytest.approx(1.0)
    assert many.top1_ci95[1] == pytest.approx(1.0)
    assert few.top1_ci95[0] < 0.9 < 0.99 < many.top1_ci95[0]


def test_paired_uncertainty_is_smaller_than_unpaired() -> None:
    """The error of the ratio is far below that of two perplexities taken as independent."""
    full = logits(500, 100, seed=10)
    other = full + 0.2 * logits(500, 100, seed=11)
    measured = score_tokens(full, other, [index % 100 for index in range(500)])
    result = summarize(measured)
    variance = float(measured.nll_full.var() + measured.nll.var())
    unpaired = result.ppl_ratio * math.sqrt(variance / 500)
    assert 0 < result.ppl_ratio_se < unpaired / 4


def test_errors_cover_the_truth() -> None:
    """95 % intervals of the mean divergence and the ratio hold the true value about that often."""
    full, other = logits(4000, 20, seed=12), logits(4000, 20, seed=13)
    generator = torch.Generator().manual_seed(14)
    targets = torch.multinomial(torch.softmax(full, -1), 1, generator=generator).flatten().tolist()
    everything = score_tokens(full, other, targets)
    truth = summarize(everything)
    hits_kld = hits_ratio = 0
    for start in range(0, 4000, 40):
        part = slice(start, start + 40)
        sample = summarize(
            TokenScores(
                everything.kld[part],
                everything.same_top[part],
                everything.nll_full[part],
                everything.nll[part],
            )
        )
        hits_kld += abs(sample.kld_mean - truth.kld_mean) < 1.96 * sample.kld_mean_se
        log_error = math.log(sample.ppl_ratio / truth.ppl_ratio)
        hits_ratio += abs(log_error) < 1.96 * sample.ppl_ratio_se / sample.ppl_ratio
    assert 85 <= hits_kld <= 100
    assert 85 <= hits_ratio <= 100


def test_pooling_joins_positions() -> None:
    """The pooled mean weighs every token alike, not every slice."""
    one = scores([1.0], [True], [1.0], [1.0])
    three = scores([0.0, 0.0, 0.0], [False] * 3, [1.0] * 3, [1.0] * 3)
    result = summarize(pool([one, three]))
    assert (result.tokens, result.kld_mean, result.top1) == (4, 0.25, 0.25)


def test_one_position_has_no_error() -> None:
    """A single position is refused: it has no standard error."""
    with pytest.raises(ValueError, match="at least 2"):
        summarize(scores([1.0], [True], [1.0], [1.0]))
