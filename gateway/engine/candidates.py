"""Which tokens a draw may take, and the draw: top-k and min-p, then top-p of what is left.

Most candidates lie within a small share of the peak, so only those are ranked; where they do not
hold all candidates, a lower share is tried. That is exact, and far cheaper than ranking a large
vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from gateway.engine.sequence import SamplingParams

SHARES_OF_PEAK = (1e-2, 1e-4, 1e-6, 0.0)
"""Tokens at least so probable, in terms of the most probable one, are ranked; 0 means all."""


class Candidates:
    """Draws the tokens of one sequence with a generator of its own."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._has_limit = params.top_p < 1 or params.min_p > 0 or params.top_k > 0
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def draw(self, probabilities: torch.Tensor) -> int:
        """Return an id drawn from the candidates among ``probabilities`` [vocab], float32."""
        if not self._has_limit:
            return self._draw_rank(probabilities.cumsum(0, dtype=torch.float64).numpy())
        values: NDArray[np.float32] = probabilities.numpy()
        ids = self._likely(values)
        likely = values[ids]
        order = np.argsort(-likely)
        params = self._params
        if params.top_k:
            order = order[: params.top_k]
        cumulative = likely[order].cumsum(dtype=np.float64)
        if params.top_p < 1:
            total = cumulative[-1] if params.top_k or params.min_p else 1.0
            num_kept = int(np.searchsorted(cumulative, params.top_p * total)) + 1
            cumulative = cumulative[:num_kept]
        return int(ids[order[self._draw_rank(cumulative)]])

    def _likely(self, values: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return the ids, in order, of tokens that hold all candidates, maybe some more."""
        params = self._params
        peak = values.max()
        if params.min_p:
            return np.flatnonzero(values >= np.float32(params.min_p) * peak)
        for share in SHARES_OF_PEAK:
            ids = np.flatnonzero(values >= np.float32(share) * peak)
            if params.top_k:
                if len(ids) >= params.top_k:
                    break
            elif values[ids].sum(dtype=np.float64) >= params.top_p:
                break
        return ids

    def _draw_rank(self, cumulative: NDArray[np.float64]) -> int:
        """Return a rank, drawn in proportion to its share of ``cumulative``."""
        uniform = float(torch.rand((), dtype=torch.float64, generator=self._generator))
        rank = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        return min(rank, len(cumulative) - 1)
