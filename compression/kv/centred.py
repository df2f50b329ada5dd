"""Keys less a constant per head and channel, which attention cannot tell."""

import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage


class CentredCodec(KvCodec):
    """Takes ``centre [heads, head_dim]`` off every key before another codec keeps it.

    ``q·(k - c) = q·k - q·c``: all scores of a query shift alike and the softmax stays as it was,
    so nothing is ever added back. Only keys may be centred.
    """

    def __init__(self, inner: KvCodec, centre: Tensor) -> None:
        super().__init__(inner.scheme, inner.head_dim)
        self.inner = inner
        self.centre = centre.to(torch.float32)

    def encode(self, x: Tensor) -> Storage:
        """Return what the inner codec keeps of ``x - centre``."""
        return self.inner.encode(x - self.centre)

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return the centred keys, rotated as :meth:`rotate` does."""
        return self.inner.decode(storage, dtype)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate as the inner codec does."""
        return self.inner.rotate(x)
