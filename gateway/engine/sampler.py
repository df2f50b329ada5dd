"""Logits → tokens for all sequences of a step: greedy rows together, the others drawn one by one.

Every draw inverts the cumulative distribution with one 64-bit uniform number: a fraction of the
cost of ``torch.multinomial`` on a large vocabulary, and exact for any seed and batch.
"""

from collections.abc import Sequence as Items

import torch

from gateway.engine.candidates import Candidates
from gateway.engine.constraint import Constraint
from gateway.engine.penalties import Penalties
from gateway.engine.sequence import SamplingParams


class Sampler:
    """What choosing the tokens of one sequence needs to remember."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_ids: Items[int] = (),
        eos_ids: frozenset[int] = frozenset(),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self._candidates = Candidates(params)
        self._constraint = constraint
        self._penalties = (
            Penalties(params, prompt_ids=prompt_ids, eos_ids=eos_ids)
            if Penalties.are_wanted(params)
            else None
        )
        self.edits_logits = self._penalties is not None or constraint is not None

    def edit(self, row: torch.Tensor) -> None:
        """Change the logits ``row`` [vocab] in place, as the request asks."""
        if self._penalties is not None:
            self._penalties.apply(row)
        if self._constraint is not None:
            self._constraint.apply(row)

    def draw(self, row: torch.Tensor, peak: float) -> int:
        """Return a token drawn from the logits ``row`` [vocab], whose largest is ``peak``."""
        # Shifted first, so that a tiny temperature cannot overflow.
        return self._candidates.draw(((row - peak) / self.params.temperature).softmax(0))

    def push(self, token_id: int) -> None:
        """Remember the token that was chosen."""
        if self._penalties is not None:
            self._penalties.push(token_id)
        if self._constraint is not None:
            self._constraint.push(token_id)


def sample(
    samplers: Items[Sampler], logits: torch.Tensor, peaks: Items[float], peak_ids: Items[int]
) -> list[int | None]:
    """Return a token for each row of finite ``logits`` [rows, vocab], which stay as they are.

    Args:
        samplers: one for each row.
        logits: float32.
        peaks: the largest value of each row.
        peak_ids: where it is.

    Returns:
        A token id for each row, None where the request allows no token at all.
    """
    token_ids: list[int | None] = list(peak_ids)
    plain: list[int] = []
    edited: list[int] = []
    for row, sampler in enumerate(samplers):
        if sampler.edits_logits:
            edited.append(row)
        elif not sampler.params.is_greedy:
            plain.append(row)
    for row in plain:
        token_ids[row] = samplers[row].draw(logits[row], peaks[row])
    if edited:
        found = _sample_edited([samplers[row] for row in edited], logits[edited])
        for row, choice in zip(edited, found, strict=True):
            token_ids[row] = choice
    return token_ids


def _sample_edited(samplers: Items[Sampler], logits: torch.Tensor) -> list[int | None]:
    """Edit the rows of ``logits`` in place and sample them."""
    for sampler, row in zip(samplers, logits, strict=True):
        sampler.edit(row)
    columns = logits.max(dim=1)
    peaks: list[float] = columns.values.tolist()
    found: list[int | None] = list(columns.indices.tolist())
    for row, sampler in enumerate(samplers):
        if peaks[row] == float("-inf"):
            found[row] = None
        elif not sampler.params.is_greedy:
            found[row] = sampler.draw(logits[row], peaks[row])
    return found
