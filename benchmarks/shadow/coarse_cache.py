"""A cache of two bits a value: damage that shows only where tokens are decoded from it."""

from dataclasses import replace

import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage
from compression.kv.plain import PlainCodec
from compression.schemes import KvUnquantized
from gateway.engine.cache import LayerCodecs
from gateway.engine.runner import Runner

_LARGEST = 3
_GROUP = 32


class TwoBitCodec(KvCodec):
    """Rounds groups of 32 values to four steps between their extremes, and keeps these in bf16."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(KvUnquantized(), head_dim)
        self._kept = PlainCodec(head_dim)

    def encode(self, x: Tensor) -> Storage:
        """Return what two bits would tell of ``x [tokens, heads, head_dim]``."""
        grouped = x.to(torch.float32).reshape(*x.shape[:-1], -1, _GROUP)
        low, high = grouped.aminmax(dim=-1, keepdim=True)
        step = ((high - low) / _LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
        rounded = ((grouped - low) / step).round_() * step + low
        return self._kept.encode(rounded.reshape(x.shape))

    def decode(self, storage: Storage, dtype: torch.dtype) -> Tensor:
        """Return what was kept."""
        return self._kept.decode(storage, dtype)


def with_coarse_cache(runner: Runner) -> Runner:
    """Return the same model over a cache of two bits."""
    head_dim = runner.decoder.architecture.head_dim
    codec = TwoBitCodec(head_dim)
    return replace(runner, codecs=tuple(LayerCodecs(codec, codec) for _ in runner.codecs))
