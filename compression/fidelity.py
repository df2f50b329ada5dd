"""How far a compressed model's next-token distributions are from the full model's.

Exact over the whole vocabulary: nothing is truncated, coarsened or rounded to fewer bits. The
statistics are those that llama.cpp prints with ``--kl-divergence``: mean, 99th percentile and
maximum of the KL divergence in nats, agreement of the top token, and the perplexity ratio with the
uncertainty of the PAIRED differences. As there, standard errors take tokens as independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compression.errors import FidelityError

_CHUNK_BYTES = 32 << 20
_MAX_EXPONENT = 300.0


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What was measured at each of T positions."""

    kld: torch.Tensor
    """[T] float64: KL(full || compressed), nats."""
    same_top: torch.Tensor
    """[T] bool: both models would have chosen the same token."""
    nll_full: torch.Tensor
    """[T] float64: negative log-likelihood of the true token under the full model, nats."""
    nll: torch.Tensor
    """[T] float64: the same under the compressed model."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The statistics of some tokens; ``*_se`` is the standard error of what stands before it."""

    kld_mean: float
    kld_mean_se: float
    kld_p99: float
    kld_max: float
    top1: float
    top1_se: float
    ppl_ratio: float
    ppl_ratio_se: float
    ppl_full: float
    tokens: int


def require_finite(logits: torch.Tensor, *, recipe: str, slice_name: str) -> None:
    """Refuse logits that hold an infinity or no number at all.

    Raises:
        FidelityError: names the recipe and the slice.
    """
    if not bool(torch.isfinite(logits).all()):
        raise FidelityError(
            f"recipe {recipe!r} gives non-finite logits on slice {slice_name!r}: "
            "the model is broken there, choose a safer recipe or check the checkpoint"
        )


def score_tokens(
    full: torch.Tensor, compressed: torch.Tensor, targets: Sequence[int]
) -> TokenScores:
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


def _score_chunk(full: torch.Tensor, compressed: torch.Tensor, ids: torch.Tensor) -> TokenScores:
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


def summarize(scores: TokenScores) -> Fidelity:
    """Return the statistics of at least two positions.

    The error of the perplexity ratio is by the delta method from the per-token differences: what
    both models find hard alike cancels, so it is far smaller than the error of either perplexity.

    Raises:
        ValueError: fewer than two positions.
    """
    tokens = scores.kld.numel()
    if tokens < 2:
        raise ValueError(f"{tokens} positions have no standard error: give at least 2")
    top1 = float(scores.same_top.double().mean())
    difference = scores.nll - scores.nll_full
    ratio = _exp(float(difference.mean()))
    return Fidelity(
        kld_mean=float(scores.kld.mean()),
        kld_mean_se=_standard_error(scores.kld),
        kld_p99=float(torch.quantile(scores.kld, 0.99)),
        kld_max=float(scores.kld.max()),
        top1=top1,
        top1_se=math.sqrt(top1 * (1.0 - top1) / (tokens - 1)),
        ppl_ratio=ratio,
        ppl_ratio_se=ratio * _standard_error(difference),
        ppl_full=_exp(float(scores.nll_full.mean())),
        tokens=tokens,
    )


def _standard_error(values: torch.Tensor) -> float:
    return float(values.std(correction=1)) / math.sqrt(values.numel())


def _exp(value: float) -> float:
    # A wrecked model must give a huge number, not an overflow or an infinity that JSON lacks.
    return math.exp(min(value, _MAX_EXPONENT))
