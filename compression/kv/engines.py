"""What an engine that is not ours can do with a recipe's cache: data, free of torch."""

from dataclasses import dataclass

from compression.recipe import KvCache
from compression.schemes import KvFp8, KvUnquantized


@dataclass(frozen=True, slots=True)
class KvFlag:
    """The value of ``vllm serve --kv-cache-dtype``, or why there is none."""

    dtype: str | None
    reason: str = ""


def vllm_kv_dtype(kv_cache: KvCache) -> KvFlag:
    """Return what vLLM is told about its cache.

    The artifact stays silent (``kv_cache_scheme: null``): the format of compressed-tensors knows
    no int8 or int4 cache. vLLM has one format for keys and values of all layers, and its CPU
    backend knows bf16 and fp8 only (``v1/attention/backends/cpu_attn.py``).
    """
    if not kv_cache.is_quantized:
        return KvFlag("auto")
    if kv_cache.keep_first or kv_cache.keep_last:
        return KvFlag(
            None,
            "vLLM keeps the cache of all layers alike: drop kv_cache.keep_first and keep_last, or "
            "serve with the embedded engine",
        )
    if isinstance(kv_cache.key, KvFp8) and isinstance(kv_cache.value, KvFp8):
        return KvFlag("fp8")
    return KvFlag(
        None,
        f"vLLM has no cache with keys in {_name(kv_cache.key.label)} and values in "
        f"{_name(kv_cache.value.label)} on every device: use fp8 for both, or serve with the "
        "embedded engine",
    )


def _name(label: str) -> str:
    return "bf16" if label == KvUnquantized().label else label
