"""How vLLM keeps the keys and values of a recipe, by device: one table."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from compression.kv.layers import layer_schemes
from compression.recipe import KvCache, Recipe
from compression.schemes import AnyKv, KvFp8, KvInt4, KvInt8, KvUnquantized
from gateway.backends.vllm_facts import VllmFacts
from gateway.backends.vllm_refusal import Refusal
from gateway.errors import LoadRefused

CACHE_DTYPE = "--kv-cache-dtype"
KEPT_LAYERS = "--kv-cache-dtype-skip-layers"
_CUDA_FP8 = (8, 9)

CUDA_KV: Mapping[type[AnyKv], str] = MappingProxyType(
    {
        KvUnquantized: "auto",
        KvInt8: "int8_per_token_head",
        KvInt4: "int4_per_token_head",
        KvFp8: "fp8_per_token_head",
    }
)
"""vLLM's name for the scheme of keys and values that is nearest to each of ours."""


def cache_options(recipe: Recipe, facts: VllmFacts) -> dict[str, str | tuple[str, ...]]:
    """Return the options that make vLLM keep keys and values as a recipe asks, or nearest to it.

    Raises:
        LoadRefused: it cannot; names the reason and the remedy.
    """
    cache = recipe.kv_cache
    if not cache.is_quantized:
        return {}
    if facts.device == "cpu":
        dtype = _cpu_kv(recipe, facts)
    elif cache.key != cache.value:
        raise Refusal(
            f"vLLM keeps keys and values alike, and these are {cache.key.label} and "
            f"{cache.value.label}",
            "give both the same scheme in 'kv_cache', or use engine 'embedded'",
        ).of(recipe)
    else:
        dtype = CUDA_KV[type(cache.key)]
        is_old = facts.capability is not None and facts.capability < _CUDA_FP8
        if isinstance(cache.key, KvFp8) and is_old:
            raise Refusal(
                "fp8 needs a GPU of compute capability 8.9", "use kv_cache int8 or none"
            ).of(recipe)
    choices = facts.options.get(CACHE_DTYPE)
    if choices is not None and dtype not in choices:
        raise Refusal(f"vLLM {facts.version} has no {dtype} cache", "use a newer vLLM, or fp8").of(
            recipe
        )
    return {CACHE_DTYPE: dtype}


def partly_kept(recipe: Recipe, facts: VllmFacts) -> KvCache | None:
    """Return the cache of a recipe that keeps outer layers in 16 bits; None: it keeps none.

    Raises:
        LoadRefused: vLLM cannot follow that here.
    """
    cache = recipe.kv_cache
    if not cache.is_quantized or not (cache.keep_first or cache.keep_last):
        return None
    if KEPT_LAYERS not in facts.options:
        why = f"vLLM {facts.version} lacks the option that 'keep_first' and 'keep_last' need"
        remedy = "use 0.32 or newer, leave them out of 'kv_cache', or use engine 'embedded'"
        raise Refusal(f"{why} ({KEPT_LAYERS})", remedy).of(recipe)
    if facts.device != "cpu":
        raise Refusal(
            "'keep_first' and 'keep_last' of 'kv_cache' put layers of two widths into one "
            "cache, with a range a token and head in some of them, which has not been tried "
            "on a GPU",
            "leave them out, or use engine 'embedded'",
        ).of(recipe)
    return cache


def kept_layers(cache: KvCache, directory: Path) -> tuple[str, ...]:
    """Return the numbers of the layers that a cache keeps in 16 bits, by the checkpoint's count.

    Raises:
        LoadRefused: the checkpoint in ``directory`` does not say how many it has.
        RecipeError: every layer is to be kept.
    """
    found = json.loads((directory / "config.json").read_bytes()).get("num_hidden_layers")
    if not isinstance(found, int):
        raise LoadRefused(
            "'keep_first' and 'keep_last' of 'kv_cache' count layers, and the checkpoint's "
            "config.json has no 'num_hidden_layers': leave them out"
        )
    layers = enumerate(layer_schemes(cache, found))
    return tuple(f"{index}" for index, layer in layers if not layer.is_quantized)


def _cpu_kv(recipe: Recipe, facts: VllmFacts) -> str:
    cache = recipe.kv_cache
    if not isinstance(cache.key, KvFp8) or not isinstance(cache.value, KvFp8):
        raise Refusal(
            f"on a processor vLLM keeps keys and values in 16 bits or fp8, not in "
            f"{cache.key.label} and {cache.value.label}",
            "use kv_cache fp8 or none, or engine 'embedded'",
        ).of(recipe)
    if not facts.cpu_features & {"amx", "avx512"}:
        raise Refusal(
            "vLLM's fp8 cache needs a processor with AVX-512 or AMX, and this one has neither",
            "use kv_cache none, or engine 'embedded'",
        ).of(recipe)
    return "fp8"
