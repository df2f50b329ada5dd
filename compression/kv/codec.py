"""What a codec of keys or values is: tokens in, bytes that never change again out."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from compression.schemes import AnyKv

Storage = tuple[Tensor, ...]
"""What is kept of some tokens: tensors whose first dimension is the token."""
TINY = torch.finfo(torch.bfloat16).tiny
"""The smallest scale, so that a head of zeros divides by something."""


class KvCodec(ABC):
    """Keeps ``x [tokens, heads, head_dim]`` in fewer bytes, each token by itself.

    The bytes of a token depend on nothing but that token: a cache appends and never rewrites, and
    a page that is full can be shared as it is.

    A codec may keep a rotated x (:meth:`rotate`) and, of keys, one less a constant. Neither is
    undone token by token: queries are rotated like the keys, ``(qR)·(kR) = q·k``, the constant
    shifts all scores of a query alike, and what attention mixes out of values is rotated back.
    """

    def __init__(self, scheme: AnyKv, head_dim: int) -> None:
        self.scheme = scheme
        self.head_dim = head_dim

    @property
    def label(self) -> str:
        """Return the scheme's short name."""
        return self.scheme.label

    @abstractmethod
    def encode(self, x: Tensor) -> Storage:
        """Return what is kept of ``x [tokens, heads, head_dim]``, bf16 or f32."""

    @abstractmethod
    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return ``[tokens, heads, head_dim]`` in ``dtype``, rotated as :meth:`rotate` does."""

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate the last dimension as the codec does; applied twice, nothing is changed."""
        return x


def scale_for(x: Tensor, largest: float) -> Tensor:
    """Return the bf16 scale ``[..., 1]`` that maps the last dimension's peak to ``largest``."""
    peak = x.abs().amax(dim=-1, keepdim=True).to(torch.float32)
    return (peak / largest).clamp_min(TINY).to(torch.bfloat16)
