"""What one decoder layer is made of."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed import PackedLinear


class RmsNorm:
    """Root-mean-square norm (Zhang & Sennrich 2019, arXiv 1910.07467) in two kernels.

    The layer norm of ``[x, -x]`` has mean 0 and variance ``mean(x²)``, so its first half is the
    RMS norm of x. PyTorch's layer norm is one fused kernel on the CPU, its RMS norm is six.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.eps = eps
        self._size = weight.shape[0]
        twice = torch.cat([weight, weight])
        self._weights = {dtype: twice.to(dtype) for dtype in (torch.bfloat16, torch.float32)}
        self.num_weights = weight.numel()

    @property
    def weight(self) -> Tensor:
        """Return the float32 weight, ``[size]`` and contiguous."""
        return self._weights[torch.float32][: self._size]

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the live tensors."""
        return sum(held.numel() * held.element_size() for held in self._weights.values())

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize the last dimension of ``x`` (bf16 or f32)."""
        mirrored = torch.cat([x, -x], dim=-1)
        weight = self._weights[x.dtype]
        normed = functional.layer_norm(mirrored, weight.shape, weight, None, self.eps)
        return normed[..., : self._size]


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: fused projections and norms."""

    input_norm: RmsNorm
    qkv: PackedLinear
    """Rows: query heads, key heads (both interleaved for the rotation), value heads."""
    q_norm: RmsNorm | None
    k_norm: RmsNorm | None
    output: PackedLinear
    post_norm: RmsNorm
    gate_up: PackedLinear
    down: PackedLinear

    @property
    def linears(self) -> tuple[PackedLinear, ...]:
        """Return its linear layers."""
        return self.qkv, self.output, self.gate_up, self.down
