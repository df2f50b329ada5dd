"""int8, symmetric, one bf16 scale per token and head."""

import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage, scale_for
from compression.schemes import KvInt8

_LARGEST = 127


class Int8Codec(KvCodec):
    """Codes ``[tokens, heads, head_dim]`` int8 and scales ``[tokens, heads, 1]`` bf16."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(KvInt8(), head_dim)

    def encode(self, x: Tensor) -> Storage:
        """Round to the nearest multiple of the scale; the error is at most half of it."""
        scale = scale_for(x, _LARGEST)
        codes = (x.to(torch.float32) / scale).round_().clamp_(-_LARGEST, _LARGEST)
        return codes.to(torch.int8), scale

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return codes times scales."""
        codes, scale = storage
        return codes.to(dtype).mul_(scale)
