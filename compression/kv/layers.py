"""Which scheme each layer's keys and values get, and what that costs: free of torch."""

from dataclasses import dataclass

from compression.errors import RecipeError
from compression.kv.shape import KvShape
from compression.recipe import KvCache
from compression.schemes import AnyKv, KvInt4, KvUnquantized


@dataclass(frozen=True, slots=True)
class LayerKv:
    """The schemes of one layer's cache."""

    key: AnyKv
    value: AnyKv

    @property
    def is_quantized(self) -> bool:
        """Return whether anything of the layer's cache is."""
        return not (isinstance(self.key, KvUnquantized) and isinstance(self.value, KvUnquantized))

    def bytes_per_token(self, heads: int, head_dim: int) -> int:
        """Return the bytes that one token takes in this layer's ``heads`` key-value heads."""
        bits = self.key.bits_per_value(head_dim) + self.value.bits_per_value(head_dim)
        return round(heads * head_dim * bits / 8)


def layer_schemes(kv_cache: KvCache, num_layers: int) -> tuple[LayerKv, ...]:
    """Return every layer's schemes, the kept layers in bf16.

    Raises:
        RecipeError: a cache is to be quantized, and every layer is kept.
    """
    kept = kv_cache.keep_first + kv_cache.keep_last
    if kv_cache.is_quantized and kept >= num_layers:
        raise RecipeError(
            f"kv_cache.keep_first {kv_cache.keep_first} and keep_last {kv_cache.keep_last} keep "
            f"all {num_layers} layers of this model: lower them, or drop kv_cache"
        )
    plain = LayerKv(KvUnquantized(), KvUnquantized())
    quantized = LayerKv(kv_cache.key, kv_cache.value)
    inner = range(kv_cache.keep_first, num_layers - kv_cache.keep_last)
    return tuple(quantized if layer in inner else plain for layer in range(num_layers))


def bytes_per_token(kv_cache: KvCache, architecture: KvShape) -> int:
    """Return the bytes of keys and values that one token takes in all layers."""
    schemes = layer_schemes(kv_cache, architecture.num_layers)
    heads, head_dim = architecture.num_kv_heads, architecture.head_dim
    return sum(layer.bytes_per_token(heads, head_dim) for layer in schemes)


def needs_centres(kv_cache: KvCache) -> bool:
    """Return whether keys are rounded so coarsely that a text must tell their mean first."""
    return isinstance(kv_cache.key, KvInt4)
