"""How far a model is from the full one, where only its likeliest tokens are known.

Everything else is one bin. The divergence of such coarsened distributions is a lower bound of the
exact one (data processing inequality), so two models may be compared on equal supports only, and
never with an exact figure. The full model's logits are needed whole.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.fidelity import TokenScores, pool

_CHUNK_BYTES = 8 << 20

LEAST_REST = 1e-6
"""The rest of a distribution that was told in float32 is known no better than this."""


@dataclass(frozen=True, slots=True)
class Told:
    """What another program told of T positions: log-probabilities, natural, of a few tokens each.

    The token that really follows is among them.
    """

    logprobs: Sequence[Mapping[int, float]]
    top: Sequence[int]
    """The likeliest token of each."""

    def part(self, rows: slice) -> "Told":
        """Return some of the positions."""
        return Told(self.logprobs[rows], self.top[rows])


def score_told(full: Tensor, told: Told, targets: Sequence[int]) -> TokenScores:
    """Compare finite logits [T, V] of the full model with what was told of the same T positions."""
    parts: list[TokenScores] = []
    for rows in _chunks(full):
        part, following = told.part(rows), targets[rows]
        ids, is_padding = _support(part)
        log_p = torch.log_softmax(full[rows].double(), dim=-1)
        log_q = torch.tensor(
            [
                [row.get(token, 0.0) for token in tokens]
                for row, tokens in zip(part.logprobs, ids.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        nll = [-row[token] for row, token in zip(part.logprobs, following, strict=True)]
        parts.append(
            TokenScores(
                kld=_divergence(log_p.gather(1, ids), log_q, is_padding),
                same_top=full[rows].argmax(dim=-1) == torch.tensor(part.top),
                nll_full=_nll(log_p, following),
                nll=torch.tensor(nll, dtype=torch.float64),
            )
        )
    return pool(parts)


def score_on_support(
    full: Tensor, compressed: Tensor, told: Told, targets: Sequence[int]
) -> TokenScores:
    """Compare two blocks of finite logits [T, V] on the tokens that were told, and one bin more."""
    parts: list[TokenScores] = []
    for rows in _chunks(full):
        ids, is_padding = _support(told.part(rows))
        log_p = torch.log_softmax(full[rows].double(), dim=-1)
        log_q = torch.log_softmax(compressed[rows].double(), dim=-1)
        parts.append(
            TokenScores(
                kld=_divergence(log_p.gather(1, ids), log_q.gather(1, ids), is_padding),
                same_top=full[rows].argmax(dim=-1) == compressed[rows].argmax(dim=-1),
                nll_full=_nll(log_p, targets[rows]),
                nll=_nll(log_q, targets[rows]),
            )
        )
    return pool(parts)


def _chunks(logits: Tensor) -> Iterator[slice]:
    """Return so many rows at a time that the memory taken does not depend on their number."""
    count = max(1, _CHUNK_BYTES // (8 * logits.shape[1]))
    return (slice(start, start + count) for start in range(0, logits.shape[0], count))


def _support(told: Told) -> tuple[Tensor, Tensor]:
    """Return the tokens of each row, and which of them only fill the row up."""
    widest = max(map(len, told.logprobs))
    ids = [[*row, *([0] * (widest - len(row)))] for row in told.logprobs]
    lengths = torch.tensor([len(row) for row in told.logprobs])
    return torch.tensor(ids), torch.arange(widest) >= lengths.unsqueeze(1)


def _divergence(log_p: Tensor, log_q: Tensor, is_padding: Tensor) -> Tensor:
    p = log_p.exp().masked_fill(is_padding, 0.0)
    q = log_q.exp().masked_fill(is_padding, 0.0)
    known = (p * (log_p - log_q)).sum(dim=-1)
    rest_p = (1 - p.sum(dim=-1)).clamp_min(0.0)
    rest_q = (1 - q.sum(dim=-1)).clamp_min(LEAST_REST)
    rest = torch.where(rest_p > 0, rest_p * (rest_p / rest_q).log(), 0.0)
    return (known + rest).clamp_min(0.0)


def _nll(log_probabilities: Tensor, targets: Sequence[int]) -> Tensor:
    column = torch.tensor(targets, dtype=torch.int64).unsqueeze(1)
    return -log_probabilities.gather(1, column).squeeze(1)
