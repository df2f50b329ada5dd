"""Which tokens a draw may take, and the draw: top-k, min-p, then top-p of what is left."""

import numpy as np
import torch

from gateway.engine.sequence import SamplingParams

SMALL_NUCLEUS = 256
"""How many candidates to rank before ranking the whole vocabulary; most nuclei are smaller."""


class Candidates:
    """Draws the tokens of one sequence with a generator of its own."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def num_ranked(self, vocab_size: int) -> int:
        """Return how many of the most probable tokens :meth:`draw` wants; 0 means no ranking."""
        params = self._params
        has_top_k = 0 < params.top_k < vocab_size
        if params.top_p >= 1 and not params.min_p and not has_top_k:
            return 0
        return min(params.top_k if has_top_k else SMALL_NUCLEUS, vocab_size)

    def draw_any(self, probabilities: torch.Tensor) -> int:
        """Return an id drawn from ``probabilities`` [vocab], all of them candidates."""
        cumulative = probabilities.cumsum(0, dtype=torch.float64)
        return self._draw_rank(cumulative, cumulative.shape[0] - 1)

    def draw(self, ranked: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor) -> int:
        """Return an id drawn from the candidates.

        Args:
            ranked: the largest probabilities ``[num_ranked]``, largest first.
            ids: whose they are ``[num_ranked]``.
            probabilities: those of all tokens ``[vocab]``, for the case that the ranked ones do
                not hold all candidates.
        """
        params = self._params
        num_tokens = probabilities.shape[0]
        is_whole = len(ranked) == num_tokens or 0 < params.top_k <= len(ranked)
        if params.min_p:
            num_kept = int((ranked >= params.min_p * ranked[0]).sum())
            is_whole = is_whole or num_kept < len(ranked)
            ranked = ranked[:num_kept]
        cumulative = ranked.cumsum(0, dtype=torch.float64)
        if not is_whole and (params.min_p or cumulative[-1] < params.top_p):
            return self._draw_of_all(probabilities.numpy())
        total = float(cumulative[-1]) if is_whole else 1.0
        return int(ids[self._draw_rank(cumulative, self._last(cumulative, total))])

    def _draw_of_all(self, probabilities: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> int:
        # numpy sorts bare values ten times as fast as torch sorts them with their ids; the value
        # at the drawn rank leads back to its id, and equal ones count in the order of their ids.
        values = np.sort(probabilities)[::-1]
        if self._params.min_p:
            values = values[values >= self._params.min_p * values[0]]
        cumulative = torch.from_numpy(values.cumsum(dtype=np.float64))
        rank = self._draw_rank(cumulative, self._last(cumulative, float(cumulative[-1])))
        num_above = int(np.count_nonzero(values > values[rank]))
        return int(np.flatnonzero(probabilities == values[rank])[rank - num_above])

    def _last(self, cumulative: torch.Tensor, total: float) -> int:
        """Return the last rank of the smallest prefix that holds ``top_p`` of ``total``."""
        last = cumulative.shape[0] - 1
        top_p = self._params.top_p
        if top_p >= 1:
            return last
        return min(last, int(torch.searchsorted(cumulative, top_p * total)))

    def _draw_rank(self, cumulative: torch.Tensor, last: int) -> int:
        """Return a rank up to ``last``, drawn in proportion to its share."""
        uniform = torch.rand((), dtype=torch.float64, generator=self._generator)
        mass = uniform * cumulative[last]
        return min(last, int(torch.searchsorted(cumulative, mass, right=True)))
