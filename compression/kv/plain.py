"""bf16: keys and values as the model makes them."""

import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage
from compression.schemes import KvUnquantized


class PlainCodec(KvCodec):
    """bf16, two bytes a value."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(KvUnquantized(), head_dim)

    def encode(self, x: Tensor) -> Storage:
        """Return ``x`` in bf16."""
        return (x.to(torch.bfloat16),)

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return what was kept in ``dtype``."""
        return storage[0].to(dtype)
