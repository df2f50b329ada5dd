"""Keys or values after a Hadamard rotation, which spreads outliers over all channels of a head.

As in QuaRot (Ashkboos et al. 2024, arXiv 2404.00456), with keys rotated after their position.
"""

import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage
from compression.kv.hadamard import hadamard


class RotatedCodec(KvCodec):
    """Rotates every head before another codec keeps it; decoding does not rotate back."""

    def __init__(self, inner: KvCodec) -> None:
        super().__init__(inner.scheme, inner.head_dim)
        self.inner = inner
        self._matrix = hadamard(inner.head_dim)

    def encode(self, x: Tensor) -> Storage:
        """Return what the inner codec keeps of the rotated ``x``."""
        return self.inner.encode(self.rotate(x.to(torch.float32)))

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return the rotated values."""
        return self.inner.decode(storage, dtype)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the last dimension by the Hadamard matrix; its own inverse."""
        return (x.to(torch.float32) @ self._matrix).to(x.dtype)
