"""Log-probabilities of the model's own distribution: before any parameter of sampling."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from gateway.engine.sequence import TokenLogprob

BLOCK_ROWS = 64
"""Rows of a prompt's logits that are worked on at a time, which bounds the memory."""
_CACHED_ROWS = 8
"""Rows that are still in the processor's cache when they are read again."""
_BLOCK = 64


def token_logprobs(
    logits: torch.Tensor, token_ids: Items[int], num_top: Items[int]
) -> list[TokenLogprob]:
    """Return the log-probability of one token per row of ``logits`` [rows, vocab].

    ``num_top`` says, row by row, how many of the most probable tokens to name beside it.
    """
    noted = note(logits, token_ids, max(num_top))
    tops = [
        tuple(zip(row_ids[:count], row[:count], strict=True))
        for row_ids, row, count in zip(
            noted.top_ids.tolist(), noted.top.tolist(), num_top, strict=True
        )
    ]
    found = zip(token_ids, noted.chosen.tolist(), tops, strict=True)
    return [TokenLogprob(token_id, logprob, top) for token_id, logprob, top in found]


@dataclass(frozen=True, slots=True)
class Noted:
    """Natural log-probabilities of some rows."""

    chosen: torch.Tensor
    """Of the token that was asked for, float32 ``[rows]``."""
    top: torch.Tensor
    """The largest ones, the largest first, float32 ``[rows, count]``."""
    top_ids: torch.Tensor
    """Whose they are, int32 ``[rows, count]``."""


def note(logits: torch.Tensor, token_ids: Items[int], count: int) -> Noted:
    """Return the log-probability of one token per row of ``logits`` [rows, vocab], and the largest.

    ``count`` of those, at most as many as there are.
    """
    count = min(count, logits.shape[1])
    parts = [
        _note(logits[start : start + _CACHED_ROWS], token_ids[start : start + _CACHED_ROWS], count)
        for start in range(0, len(token_ids), _CACHED_ROWS)
    ]
    return Noted(
        chosen=torch.cat([part.chosen for part in parts]),
        top=torch.cat([part.top for part in parts]),
        top_ids=torch.cat([part.top_ids for part in parts]),
    )


def _note(logits: torch.Tensor, token_ids: Items[int], count: int) -> Noted:
    normalizers = logits.logsumexp(1, keepdim=True)
    chosen = logits.gather(1, torch.tensor(token_ids).unsqueeze(1)) - normalizers
    if count:
        values, ids = largest(logits, count)
    else:
        values, ids = logits[:, :0], torch.empty((len(token_ids), 0))
    top = (values - normalizers).clamp_(max=0)
    return Noted(chosen.squeeze(1).clamp_(max=0), top, ids.to(torch.int32))


def largest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each row's ``count`` largest values, the largest first, and their ids.

    Equal values come in any order. Only blocks with the largest maxima are sorted: whatever is
    outside of them is no larger than ``count`` values inside. ``logits`` are ``[rows, vocab]``,
    both results ``[rows, count]``.
    """
    num_rows, width = logits.shape
    num_blocks = width // _BLOCK
    if num_blocks < 2 * count:
        values, ids = logits.topk(count)
        return values, ids
    stop = num_blocks * _BLOCK
    blocks = logits[:, :stop].view(num_rows, num_blocks, _BLOCK)
    best = blocks.amax(2).topk(count, sorted=False).indices.unsqueeze(2)
    some = blocks.gather(1, best.expand(-1, -1, _BLOCK)).flatten(1)
    ids = (best * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    if stop < width:
        some = torch.cat((some, logits[:, stop:]), dim=1)
        ids = torch.cat((ids, torch.arange(stop, width).expand(num_rows, -1)), dim=1)
    values, places = some.topk(count)
    return values, ids.gather(1, places)


def prompt_logprobs(
    logits: torch.Tensor, token_ids: Items[int], num_top: int
) -> list[TokenLogprob]:
    """Return the same for the prompt tokens that follow each row, with their ranks."""
    found: list[TokenLogprob] = []
    for start in range(0, len(token_ids), BLOCK_ROWS):
        ids = token_ids[start : start + BLOCK_ROWS]
        block = logits[start : start + len(ids)]
        own = block[torch.arange(len(ids)), torch.tensor(ids)]
        ranks = ((block > own.unsqueeze(1)).sum(1) + 1).tolist()
        entries = token_logprobs(block, ids, [num_top] * len(ids))
        found += [
            TokenLogprob(entry.token_id, entry.logprob, entry.top, rank)
            for entry, rank in zip(entries, ranks, strict=True)
        ]
    return found
