"""How a cache's bytes lie, as compiled attention reads and writes them."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from compression.kernels import attention_tiles as kv
from compression.kernels.attention_matrix import CHANNELS
from compression.kernels.matrix_unit import permission
from compression.kv.centred import CentredCodec
from compression.kv.codec import KvCodec
from compression.kv.int4 import Int4Codec
from compression.kv.int8 import Int8Codec
from compression.kv.plain import PlainCodec
from compression.kv.rotated import RotatedCodec
from gateway.engine.cache import LayerCodecs

_CHANNELS = 8


@dataclass(frozen=True, slots=True)
class Held:
    """What is done to keys or values before they are kept, and how."""

    kind: int
    """One of :mod:`compression.kernels.kv`."""
    block: int
    """Size of the Hadamard matrices that rotate a head; 0 for none."""
    centre: Tensor | None
    """Float32 ``[kv_heads, head_dim]`` that is taken off first."""
    groups: int
    """Groups of int4 a head."""
    on_unit: bool = False
    """Whether the matrix unit reads it as it lies."""

    def numbers(self, kv_heads: int, head_dim: int, *, tensors: int) -> list[int]:
        """Return half a row of ``LAYOUT_FIELDS``; ``tensors`` share one piece of memory."""
        size = {kv.PLAIN: 2 * head_dim, kv.INT8: head_dim, kv.INT4: head_dim // 2}[self.kind]
        scales = 2 * self.groups if self.kind == kv.INT4 else 1
        return [self.kind, size * kv_heads * tensors, size, kv_heads, scales, self.groups]


def held(codec: KvCodec) -> Held | None:
    """Return what a codec does, or None where no compiled kernel does it.

    Kernels take channels in eights; the two halves of an int4 head and its groups likewise.
    """
    centre, block = None, 0
    if codec.head_dim % _CHANNELS:
        return None
    if isinstance(codec, CentredCodec):
        centre, codec = codec.centre.contiguous(), codec.inner
    if isinstance(codec, RotatedCodec):
        block, codec = codec.head_dim & -codec.head_dim, codec.inner
    on_unit = codec.head_dim % CHANNELS == 0 and permission()
    match codec:
        case PlainCodec():
            return Held(kv.PLAIN, block, centre, 0, on_unit)
        case Int8Codec():
            return Held(kv.INT8, block, centre, 0, on_unit)
        case Int4Codec() if not (codec.head_dim // 2 % _CHANNELS or codec.width % _CHANNELS):
            return Held(kv.INT4, block, centre, codec.groups)
        case _:
            return None


def layer_layout(codecs: LayerCodecs, kv_heads: int, head_dim: int) -> np.ndarray | None:
    """Return ``[LAYOUT_FIELDS]`` of a layer, or None where no compiled kernel reads it."""
    key, value = held(codecs.key), held(codecs.value)
    if key is None or value is None:
        return None
    tensors = 2 if codecs.is_plain else 1
    numbers = key.numbers(kv_heads, head_dim, tensors=tensors)
    numbers += value.numbers(kv_heads, head_dim, tensors=tensors)
    return np.array(numbers, np.int64)
