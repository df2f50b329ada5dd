"""From a scheme to the codec that carries it out."""

from torch import Tensor

from compression.kv.centred import CentredCodec
from compression.kv.codec import KvCodec
from compression.kv.fp8 import Fp8Codec
from compression.kv.int4 import Int4Codec
from compression.kv.int8 import Int8Codec
from compression.kv.plain import PlainCodec
from compression.kv.rotated import RotatedCodec
from compression.schemes import AnyKv, KvFp8, KvInt4, KvInt8


def key_codec(scheme: AnyKv, head_dim: int, centre: Tensor | None = None) -> KvCodec:
    """Return the codec of a layer's keys, less ``centre [heads, head_dim]`` where it rounds them.

    Integer keys are rotated: their outliers are what rounding suffers from.
    """
    codec = bare_codec(scheme, head_dim)
    if isinstance(codec, PlainCodec):
        return codec
    if isinstance(scheme, KvInt8 | KvInt4):
        codec = RotatedCodec(codec)
    return codec if centre is None else CentredCodec(codec, centre)


def value_codec(scheme: AnyKv, head_dim: int) -> KvCodec:
    """Return the codec of a layer's values; at eight bits a rotation gains them nothing."""
    codec = bare_codec(scheme, head_dim)
    return RotatedCodec(codec) if isinstance(scheme, KvInt4) else codec


def bare_codec(scheme: AnyKv, head_dim: int) -> KvCodec:
    """Return the codec of a scheme, neither rotated nor centred."""
    match scheme:
        case KvInt8():
            return Int8Codec(head_dim)
        case KvInt4():
            return Int4Codec(scheme, head_dim)
        case KvFp8():
            return Fp8Codec(head_dim)
        case _:
            return PlainCodec(head_dim)
