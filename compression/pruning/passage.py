"""A text on its way through the layers of a checkpoint, seen and changed half a layer at a time."""

from collections.abc import Callable

from torch import Tensor, nn

from compression.first_tokens import first_tokens
from compression.halves import Half
from compression.layerwise import LayerStream


class Passage:
    """The hidden states of token windows, and of some of their tokens standing alone."""

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
