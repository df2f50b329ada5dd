"""Takes down what a build's weights predict for the texts that its fidelity is measured on."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compression.evaluation import Window
from compression.fixed_texts import NUM_TOP, FixedText, FixedTexts

_DIGITS = 6


class Keeping:
    """Gathers rows of logits in the order of the windows."""

    def __init__(self, slices: Mapping[str, Sequence[Window]]) -> None:
        self._windows = [(name, window) for name, windows in slices.items() for window in windows]
        self._ids: list[tuple[int, ...]] = []
        self._logprobs: list[tuple[float, ...]] = []

    def take(self, logits: Tensor) -> None:
        """Take the next rows of the compressed model's logits ``[n, vocabulary]``."""
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        top = logprobs.topk(min(NUM_TOP, logits.shape[1]))
        self._ids += map(tuple, top.indices.tolist())
        self._logprobs += (
            tuple(round(each, _DIGITS) for each in row) for row in top.values.tolist()
        )

    def texts(self) -> FixedTexts:
        """Return what was taken."""
        ids, logprobs = iter(self._ids), iter(self._logprobs)
        return FixedTexts(
            texts=tuple(
                FixedText(
                    name=name,
                    token_ids=window.token_ids,
                    first=window.first,
                    top_ids=tuple(next(ids) for _ in window.targets),
                    logprobs=tuple(next(logprobs) for _ in window.targets),
                )
                for name, window in self._windows
            )
        )
