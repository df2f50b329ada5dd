"""int4, asymmetric, one bf16 scale and minimum per group, two codes a byte."""

import torch
from torch import Tensor

from compression.kv.codec import TINY, KvCodec, Storage
from compression.schemes import KvInt4

_LARGEST = 15


class Int4Codec(KvCodec):
    """Codes ``[tokens, heads, head_dim / 2]`` uint8, ranges ``[tokens, heads, groups, 2]`` bf16.

    Byte i holds value i in its low half and value ``i + head_dim / 2`` in its high half. A range
    is a group's scale and its minimum.
    """

    def __init__(self, scheme: KvInt4, head_dim: int) -> None:
        super().__init__(scheme, head_dim)
        self.groups = scheme.groups(head_dim)
        """Equal groups of a head's values."""
        self.width = head_dim // self.groups
        """Values of a group."""

    def encode(self, x: Tensor) -> Storage:
        """Round to the nearest of 16 steps of a group; the error is about half a step."""
        grouped = self._grouped(x.to(torch.float32))
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        low = low.to(torch.bfloat16)
        scale = ((high - low) / _LARGEST).clamp_min(TINY).to(torch.bfloat16)
        codes = ((grouped - low) / scale).round_().clamp_(0, _LARGEST).to(torch.uint8)
        first, second = codes.flatten(-2).chunk(2, dim=-1)
        return first | (second << 4), torch.cat([scale, low], dim=-1)

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return ``minimum + code * scale``."""
        packed, ranges = storage
        tokens, heads, half = packed.shape
        codes = torch.empty(tokens, heads, 2 * half, dtype=dtype)
        codes[..., :half] = packed & 0xF
        codes[..., half:] = packed >> 4
        scale, low = ranges.to(dtype).chunk(2, dim=-1)
        return self._grouped(codes).mul_(scale).add_(low).flatten(-2)

    def _grouped(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.groups, -1)
