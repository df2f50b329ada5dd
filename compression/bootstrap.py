"""Confidence intervals of means over text, whose tokens depend on their neighbours.

A block bootstrap resamples runs of consecutive tokens, so that what holds inside a run holds in
the resample too (moving blocks: Künsch 1989; wrapped around at the end, so that every token is
drawn equally often: Politis & Romano 1992). Several texts are strata: each is resampled on its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LEVEL = 0.95
BLOCK_TOKENS = 32
RESAMPLES = 1000
SEED = 0

_FEWEST_BLOCKS = 8
_PICKS_AT_ONCE = 1 << 20


def describe() -> dict[str, Any]:
    """Return how intervals are made, for reports."""
    return {
        "level": LEVEL,
        "method": "circular moving-block bootstrap within each slice, percentiles",
        "block_tokens": BLOCK_TOKENS,
        "resamples": RESAMPLES,
        "seed": SEED,
    }


def resampled_means(texts: Sequence[Tensor]) -> Tensor:
    """Return the means ``[RESAMPLES, C]`` of resamples of the values ``[T, C]`` of each text.

    Tokens weigh alike, whatever text they are from. The seed is fixed: equal values give equal
    means. A text too short for eight blocks of the usual length is cut into shorter ones.
    """
    generator = torch.Generator().manual_seed(SEED)
    weighted = [len(values) * _block_means(values.double(), generator) for values in texts]
    return torch.stack(weighted).sum(dim=0) / sum(len(values) for values in texts)


def interval(means: Tensor) -> tuple[float, float]:
    """Return the bounds between which :data:`LEVEL` of the resampled ``means [RESAMPLES]`` lie."""
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high


def _block_means(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean of each resample of one text, ``[RESAMPLES, C]``."""
    count = len(values)
    length = min(BLOCK_TOKENS, max(1, count // _FEWEST_BLOCKS))
    blocks = torch.cat([values, values[: length - 1]]).unfold(0, length, 1).mean(dim=-1)
    picks = torch.randint(count, (RESAMPLES, -(-count // length)), generator=generator)
    parts = picks.chunk(1 + picks.numel() // _PICKS_AT_ONCE)
    return torch.cat([blocks[part].mean(dim=1) for part in parts])
