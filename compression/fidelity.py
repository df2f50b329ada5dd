"""How far a compressed model's next-token distributions are from the full model's.

Exact over the whole vocabulary: nothing is truncated, coarsened or rounded to fewer bits. The
statistics are all that llama.cpp prints with ``--kl-divergence``, by its definitions; its names for
them are in :mod:`compression.fidelity_statistics`. As there, standard errors (``*_se``) take tokens
as independent. Tokens of one text are not, so the 95 % intervals (``*_ci95``) are made from
resampled runs of tokens (:mod:`compression.bootstrap`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from compression.bootstrap import LEVEL, interval, resampled_means
from compression.errors import FidelityError
from compression.fidelity_record import SliceFidelity

_CHUNK_BYTES = 8 << 20
_MAX_EXPONENT = 300.0

_TAILS = {
    "max": 1.0, "p99_9": 0.999, "p99": 0.99, "p95": 0.95, "p90": 0.9, "median": 0.5,
    "p10": 0.1, "p5": 0.05, "p1": 0.01, "p0_1": 0.001, "min": 0.0,
}  # fmt: skip
_QUARTILES = {"p75": 0.75, "p25": 0.25}


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What was measured at each of T positions."""

    kld: Tensor
    """[T] float64: KL(full || compressed), nats."""
    same_top: Tensor
    """[T] bool: both models would have chosen the same token."""
    nll_full: Tensor
    """[T] float64: negative log-likelihood of the true token under the full model, nats."""
    nll: Tensor
    """[T] float64: the same under the compressed model."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The statistics of some tokens; probabilities and shares are of 1, divergences in nats.

    ``*_se`` is the standard error of what stands before it, ``*_ci95`` its 95 % interval,
    ``*_p<level>`` a percentile. ``ppl`` is of the compressed model, ``ppl_full`` of the full one;
    ``delta_p`` is how much more probable the true token became.
    """

    tokens: int
    ppl: float
    ppl_se: float
    ppl_full: float
    ppl_full_se: float
    ln_ppl_correlation: float | None
    """None where all tokens are equally likely under one of the models."""
    ln_ppl_ratio: float
    ln_ppl_ratio_se: float
    ppl_ratio: float
    ppl_ratio_se: float
    ppl_ratio_ci95: tuple[float, float]
    ppl_difference: float
    ppl_difference_se: float
    kld_mean: float
    kld_mean_se: float
    kld_mean_ci95: tuple[float, float]
    kld_max: float
    kld_p99_9: float
    kld_p99: float
    kld_p95: float
    kld_p90: float
    kld_median: float
    kld_p10: float
    kld_p5: float
    kld_p1: float
    kld_p0_1: float
    kld_min: float
    delta_p_mean: float
    delta_p_mean_se: float
    delta_p_max: float
    delta_p_p99_9: float
    delta_p_p99: float
    delta_p_p95: float
    delta_p_p90: float
    delta_p_p75: float
    delta_p_median: float
    delta_p_p25: float
    delta_p_p10: float
    delta_p_p5: float
    delta_p_p1: float
    delta_p_p0_1: float
    delta_p_min: float
    delta_p_rms: float
    delta_p_rms_se: float
    top1: float
    top1_se: float
    top1_ci95: tuple[float, float]

    def record(self, name: str) -> SliceFidelity:
        """Return what a manifest keeps of this slice."""
        return SliceFidelity(
            name=name,
            kld_mean=self.kld_mean,
            kld_mean_ci95=self.kld_mean_ci95,
            kld_p99=self.kld_p99,
            top1=self.top1,
            top1_ci95=self.top1_ci95,
            tokens=self.tokens,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


def require_finite(logits: Tensor, *, recipe: str, slice_name: str) -> None:
    """Refuse logits that hold an infinity or no number at all.

    Raises:
        FidelityError: names the recipe and the slice.
    """
    # One pass and no temporaries: numbers that are none win over all others.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(logits))).all()):
        raise FidelityError(
            f"recipe {recipe!r} gives non-finite logits on slice {slice_name!r}: "
            "the model is broken there, choose a safer recipe or check the checkpoint"
        )


def score_tokens(full: Tensor, compressed: Tensor, targets: Sequence[int]) -> TokenScores:
    """Compare two blocks of finite logits [T, V]; ``targets`` are the T tokens that follow.

    Works in float64 on a few rows at a time, so identical rows give exactly 0 and the memory taken
    does not depend on T. The divergence is clamped at 0, below which only rounding can bring it.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if full.dim() != 2 or full.shape != compressed.shape or full.shape[0] != len(targets):
        raise ValueError(
            f"logits {tuple(full.shape)} and {tuple(compressed.shape)} "
            f"do not belong to {len(targets)} targets"
        )
    rows = max(1, _CHUNK_BYTES // (8 * full.shape[1]))
    following = torch.tensor(targets, dtype=torch.int64)
    return pool(
        [
            _score_chunk(full[part], compressed[part], following[part])
            for part in (slice(start, start + rows) for start in range(0, len(targets), rows))
        ]
    )


def _score_chunk(full: Tensor, compressed: Tensor, ids: Tensor) -> TokenScores:
    log_p = torch.log_softmax(full.double(), dim=-1)
    log_q = torch.log_softmax(compressed.double(), dim=-1)
    column = ids.unsqueeze(1)
    return TokenScores(
        kld=(log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp_min(0.0),
        same_top=full.argmax(dim=-1) == compressed.argmax(dim=-1),
        nll_full=-log_p.gather(1, column).squeeze(1),
        nll=-log_q.gather(1, column).squeeze(1),
    )


def pool(parts: Sequence[TokenScores]) -> TokenScores:
    """Join the positions of several windows or slices."""
    return TokenScores(
        kld=torch.cat([part.kld for part in parts]),
        same_top=torch.cat([part.same_top for part in parts]),
        nll_full=torch.cat([part.nll_full for part in parts]),
        nll=torch.cat([part.nll for part in parts]),
    )


def summarize(*texts: TokenScores) -> Fidelity:
    """Return the statistics of at least two positions, pooled over texts: tokens weigh alike.

    Errors of a ratio or difference of perplexities are of the per-token differences: what both
    models find hard alike cancels, so they are far smaller than the error of either perplexity.

    Raises:
        ValueError: fewer than two positions.
    """
    scores = pool(texts)
    tokens = scores.kld.numel()
    if tokens < 2:
        raise ValueError(f"{tokens} positions have no standard error: give at least 2")
    means = resampled_means(
        [torch.stack([t.kld, t.same_top.double(), t.nll - t.nll_full], dim=1) for t in texts]
    )
    kld, agreement, ln_ratio = means.unbind(dim=1)
    low, high = interval(ln_ratio)
    return Fidelity(
        **_perplexity(scores.nll, scores.nll_full),
        **_with_error("kld_mean", scores.kld),
        **_percentiles("kld", scores.kld, _TAILS),
        **_probability(scores.nll, scores.nll_full),
        **_top(scores.same_top, float(agreement.var())),
        tokens=tokens,
        kld_mean_ci95=interval(kld),
        ppl_ratio_ci95=(_exp(low), _exp(high)),
    )


def _perplexity(nll: Tensor, nll_full: Tensor) -> dict[str, Any]:
    """Return what is said of both perplexities; errors by the delta method."""
    ppl, ppl_full = _exp(float(nll.mean())), _exp(float(nll_full.mean()))
    change = nll - nll_full
    ratio, error = _exp(float(change.mean())), _standard_error(change)
    # Of numbers up to 1, because the squares of a wrecked model's perplexity overflow.
    scale = max(ppl, ppl_full)
    scaled = nll * (ppl / scale) - nll_full * (ppl_full / scale)
    return {
        "ppl": ppl,
        "ppl_se": ppl * _standard_error(nll),
        "ppl_full": ppl_full,
        "ppl_full_se": ppl_full * _standard_error(nll_full),
        "ln_ppl_correlation": _correlation(nll, nll_full),
        "ln_ppl_ratio": float(change.mean()),
        "ln_ppl_ratio_se": error,
        "ppl_ratio": ratio,
        "ppl_ratio_se": ratio * error,
        "ppl_difference": ppl - ppl_full,
        "ppl_difference_se": scale * _standard_error(scaled),
    }


def _probability(nll: Tensor, nll_full: Tensor) -> dict[str, Any]:
    """Return how the probability of the true token moved; the RMS's error by the delta method."""
    delta = torch.exp(-nll) - torch.exp(-nll_full)
    squares = delta.square()
    rms = math.sqrt(float(squares.mean()))
    return {
        **_with_error("delta_p_mean", delta),
        **_percentiles("delta_p", delta, _TAILS | _QUARTILES),
        "delta_p_rms": rms,
        "delta_p_rms_se": _standard_error(squares) / (2 * rms) if rms else 0.0,
    }


def _top(same_top: Tensor, variance: float) -> dict[str, Any]:
    """Return the share of equal top tokens.

    The interval is Wilson's (1927), which never leaves 0 to 1 nor is empty when all agree, for as
    many independent tokens as would give the resamples' ``variance``.
    """
    tokens, share = same_top.numel(), float(same_top.double().mean())
    spread = share * (1 - share)
    independent = min(tokens, spread / variance) if variance else tokens
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z * z / (2 * independent)) / (1 + z * z / independent)
    half = math.sqrt(spread / independent + (z / (2 * independent)) ** 2)
    half *= z / (1 + z * z / independent)
    return {
        "top1": share,
        "top1_se": math.sqrt(spread / (tokens - 1)),
        "top1_ci95": (max(0.0, middle - half), min(1.0, middle + half)),
    }


def _with_error(name: str, values: Tensor) -> dict[str, Any]:
    return {name: float(values.mean()), f"{name}_se": _standard_error(values)}


def _percentiles(prefix: str, values: Tensor, levels: Mapping[str, float]) -> dict[str, Any]:
    shares = torch.tensor(list(levels.values()), dtype=values.dtype)
    found = torch.quantile(values, shares).tolist()
    return {f"{prefix}_{name}": value for name, value in zip(levels, found, strict=True)}


def _correlation(left: Tensor, right: Tensor) -> float | None:
    """Return Pearson's coefficient, or None where one side does not vary."""
    left, right = left - left.mean(), right - right.mean()
    norm = float(left.norm()) * float(right.norm())
    return max(-1.0, min(1.0, float(left @ right) / norm)) if norm else None


def _standard_error(values: Tensor) -> float:
    return float(values.std(correction=1)) / math.sqrt(values.numel())


def _exp(value: float) -> float:
    # A wrecked model must give a huge number, not an overflow or an infinity that JSON lacks.
    return math.exp(min(value, _MAX_EXPONENT))
