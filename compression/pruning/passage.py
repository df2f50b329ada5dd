"""A text on its way through the layers of a checkpoint, seen and changed half a layer at a time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compression.layerwise import LayerStream
from compression.pruning.footprint import STARTS
from compression.pruning.halves import Half


class Passage:
    """The hidden states of token windows, and of some of their tokens standing alone.

    What stands first in a text takes a special part in every layer: it sees only itself, and many
    later tokens attend to it (Sun et al. 2024, Massive Activations, arXiv 2402.17762). Windows
    hold few first tokens, and a refit that has seen too few of them ruins every text that starts
    otherwise; so up to 2048 tokens of the windows are also read as texts of their own.
    """

    def __init__(self, stream: LayerStream, windows: Tensor) -> None:
        self._stream = stream
        self._hidden = [stream.embed(windows), stream.embed(first_tokens(windows))]

    def observe(self, half: Half, see: Callable[[Tensor], None]) -> None:
        """Hand ``see`` the inputs [n, K] of the half's projection, batch by batch."""

        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see(inputs[0].flatten(0, -2))

        handle = half.projection.register_forward_pre_hook(hook)
        try:
            for hidden in self._hidden:
                for _ in self._stream.run(half, hidden):
                    pass
        finally:
            handle.remove()

    def advance(self, half: Half) -> None:
        """Move on through the half as it is now."""
        for hidden in self._hidden:
            start = 0
            for batch in self._stream.run(half, hidden):
                hidden[start : start + batch.shape[0]] = batch
                start += batch.shape[0]


def first_tokens(windows: Tensor) -> Tensor:
    """Return tokens [n, 1] taken at even distances from all of ``windows`` [B, T]."""
    ids = windows.flatten()
    distance = max(1, len(ids) // STARTS)
    return ids[torch.arange(0, len(ids), distance)[:STARTS]].unsqueeze(1)
