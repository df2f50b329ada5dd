"""From a scheme to the codec that carries it out."""

from torch import Tensor

from compression.kv.centred import CentredCodec
from compression.kv.codec import KvCodec
from compression.kv.fp8 import Fp8Codec
from compression.kv.int4 import Int4Codec
from compression.kv.int8 import Int8Codec
from compression.kv.plain import PlainCodec
from compression.schemes import AnyKv, KvFp8, KvInt4, KvInt8


def make_codec(scheme: AnyKv, head_dim: int, centre: Tensor | None = None) -> KvCodec:
    """Return the codec of a scheme; ``centre [heads, head_dim]`` is for quantized keys."""
    match scheme:
        case KvInt8():
            codec: KvCodec = Int8Codec(head_dim)
        case KvInt4():
            codec = Int4Codec(scheme, head_dim)
        case KvFp8():
            codec = Fp8Codec(head_dim)
        case _:
            return PlainCodec(head_dim)
    return codec if centre is None else CentredCodec(codec, centre)
