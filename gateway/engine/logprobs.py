"""Log-probabilities of the model's own distribution: before any parameter of sampling."""

from collections.abc import Sequence as Items

import torch

from gateway.engine.sequence import TokenLogprob

BLOCK_ROWS = 64
"""Rows of a prompt's logits that are worked on at a time, which bounds the memory."""


def token_logprobs(
    logits: torch.Tensor, token_ids: Items[int], num_top: Items[int]
) -> list[TokenLogprob]:
    """Return the log-probability of one token per row of ``logits`` [rows, vocab].

    ``num_top`` says, row by row, how many of the most probable tokens to name beside it.
    """
    normalizers = logits.logsumexp(1)
    rows = torch.arange(len(token_ids))
    chosen = (logits[rows, torch.tensor(token_ids)] - normalizers).clamp_(max=0).tolist()
    most = min(max(num_top), logits.shape[1])
    if not most:
        pairs = zip(token_ids, chosen, strict=True)
        return [TokenLogprob(token_id, logprob) for token_id, logprob in pairs]
    values, ids = logits.topk(most)
    values = (values - normalizers.unsqueeze(1)).clamp_(max=0)
    tops = [
        tuple(zip(row_ids[:count], row[:count], strict=True))
        for row_ids, row, count in zip(ids.tolist(), values.tolist(), num_top, strict=True)
    ]
    found = zip(token_ids, chosen, tops, strict=True)
    return [TokenLogprob(token_id, logprob, top) for token_id, logprob, top in found]


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
