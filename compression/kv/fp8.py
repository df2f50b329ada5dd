"""Float8 e4m3 (Micikevicius et al. 2022, arXiv 2209.05433), one bf16 scale per token and head."""

import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage, scale_for
from compression.schemes import KvFp8

_LARGEST = torch.finfo(torch.float8_e4m3fn).max


class Fp8Codec(KvCodec):
    """Codes ``[tokens, heads, head_dim]`` e4m3 and scales ``[tokens, heads, 1]`` bf16."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(KvFp8(), head_dim)

    def encode(self, x: Tensor) -> Storage:
        """Round to the nearest e4m3 number, the head's peak to the largest one (448)."""
        scale = scale_for(x, _LARGEST)
        # Beyond the largest number a cast gives NaN, and the scale may have been rounded down.
        scaled = (x.to(torch.float32) / scale).clamp_(-_LARGEST, _LARGEST)
        return scaled.to(torch.float8_e4m3fn), scale

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return codes times scales."""
        codes, scale = storage
        return _widen(codes).to(dtype).mul_(scale)


def _widen(codes: Tensor) -> Tensor:
    """Return e4m3 numbers as bf16, exactly, with few whole-tensor operations.

    PyTorch's own cast goes value by value, some six times slower. Here the seven bits below the
    sign move to where bf16 has them; what is missing then is the difference of the exponents'
    biases, 127 - 7. Subnormal numbers come out right as well.
    """
    bits = codes.view(torch.int8).to(torch.int16)
    magnitude = (bits & 0x7F).mul_(1 << 4)
    return magnitude.bitwise_or_(bits.bitwise_and_(-(1 << 15))).view(torch.bfloat16).mul_(2.0**120)
