"""Logits → token: greedy, or drawn under temperature, top-k and top-p with a generator of its own.

Every draw inverts the cumulative distribution with one 64-bit uniform number: a fraction of the
cost of ``torch.multinomial`` on a large vocabulary, and exact for any seed and batch.
"""

import numpy as np
import torch

from gateway.engine.sequence import SamplingParams

SMALL_NUCLEUS = 256
"""How many candidates to rank before ranking the whole vocabulary; most nuclei are smaller."""


class Sampler:
    """Chooses the tokens of one request."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def sample(self, logits: torch.Tensor, *, peak: float, peak_id: int) -> int:
        """Return a token id for finite ``logits`` [vocab], whose largest is ``peak``."""
        params = self._params
        if params.is_greedy:
            return peak_id
        if 0 < params.top_k < logits.shape[0]:
            largest, ids = logits.topk(params.top_k)
            ranked = self._probabilities(largest, peak)
            return int(ids[self._draw(ranked.cumsum(0, dtype=torch.float64), params.top_p)])
        probabilities = self._probabilities(logits, peak)
        if params.top_p >= 1:
            return self._draw(probabilities.cumsum(0, dtype=torch.float64), 1.0)
        return self._draw_from_nucleus(probabilities)

    def _probabilities(self, logits: torch.Tensor, peak: float) -> torch.Tensor:
        # Shifted first, so that a tiny temperature cannot overflow.
        return ((logits - peak) / self._params.temperature).softmax(0)

    def _draw_from_nucleus(self, probabilities: torch.Tensor) -> int:
        top_p = self._params.top_p
        size = min(SMALL_NUCLEUS, probabilities.shape[0])
        ranked, ids = probabilities.topk(size)
        cumulative = ranked.cumsum(0, dtype=torch.float64)
        if cumulative[-1] >= top_p or size == probabilities.shape[0]:
            return int(ids[self._draw(cumulative, top_p)])
        # numpy sorts bare values ten times as fast as torch sorts them with their ids; the value
        # at the drawn rank leads back to its id, and equal ones count in the order of their ids.
        values = np.sort(probabilities.numpy())[::-1]
        rank = self._draw(torch.from_numpy(values.cumsum(dtype=np.float64)), top_p)
        num_above = int(np.count_nonzero(values > values[rank]))
        return int(np.flatnonzero(probabilities.numpy() == values[rank])[rank - num_above])

    def _draw(self, cumulative: torch.Tensor, top_p: float) -> int:
        """Return an index drawn from the smallest prefix that holds ``top_p`` of the mass."""
        last = cumulative.shape[0] - 1
        if top_p < 1:
            last = min(last, int(torch.searchsorted(cumulative, top_p)))
        uniform = torch.rand((), dtype=torch.float64, generator=self._generator)
        return min(
            last, int(torch.searchsorted(cumulative, uniform * cumulative[last], right=True))
        )
