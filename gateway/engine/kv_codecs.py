"""Which codecs a model's cache uses, and what the live cache says it holds."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compression.errors import ArtifactError
from compression.kv.codecs import key_codec, value_codec
from compression.kv.layers import bytes_per_token, layer_schemes
from compression.kv.shape import KvShape
from compression.recipe import KvCache
from gateway.engine.cache import Cache, LayerCodecs
from gateway.engine.rotary import interleave


def make_codecs(
    kv_cache: KvCache, architecture: KvShape, centres: Sequence[Tensor] | None
) -> tuple[LayerCodecs, ...]:
    """Return each layer's codecs.

    ``centres`` holds one ``[kv_heads, head_dim]`` per layer in the checkpoint's order of channels;
    the engine's keys have theirs interleaved for the rotation.

    Raises:
        RecipeError: every layer is kept in bf16.
    """
    pairs = interleave(1, architecture.head_dim)
    head_dim = architecture.head_dim
    codecs = []
    for index, schemes in enumerate(layer_schemes(kv_cache, architecture.num_layers)):
        centre = None if centres is None else centres[index][:, pairs]
        codecs.append(
            LayerCodecs(
                key=key_codec(schemes.key, head_dim, centre),
                value=value_codec(schemes.value, head_dim),
            )
        )
    return tuple(codecs)


def describe_cache(cache: Cache, kv_cache: KvCache) -> dict[str, Any]:
    """Return what was asked for, and what the tensors of a live cache really are.

    ``kv_scheme`` has for ``key`` and ``value`` the count of layers per scheme, ``requested`` and
    ``applied``; ``kv_bytes_per_token`` is the sum over the tensors.
    """
    asked = layer_schemes(kv_cache, len(cache.layers))
    live = [layer.codecs for layer in cache.layers]
    return {
        "kv_scheme": {
            "key": {
                "requested": _count([layer.key.label for layer in asked]),
                "applied": _count([layer.key.label for layer in live]),
            },
            "value": {
                "requested": _count([layer.value.label for layer in asked]),
                "applied": _count([layer.value.label for layer in live]),
            },
        },
        "kv_bytes_per_token": cache.bytes_per_token,
    }


def require_applied(cache: Cache, kv_cache: KvCache, architecture: KvShape) -> None:
    """Check that a live cache holds what the recipe asks for, bytes included.

    Raises:
        ArtifactError: names both.
    """
    found = describe_cache(cache, kv_cache)
    promised = bytes_per_token(kv_cache, architecture)
    for part, schemes in found["kv_scheme"].items():
        if schemes["requested"] != schemes["applied"]:
            raise ArtifactError(
                f"the recipe asks for {part}s of the cache in {schemes['requested']}, the engine "
                f"keeps them in {schemes['applied']}: serve the artifact with the version of "
                "narrowgate that built it"
            )
    if found["kv_bytes_per_token"] != promised:
        raise ArtifactError(
            f"a token of the cache takes {found['kv_bytes_per_token']} bytes, the recipe promises "
            f"{promised}: serve the artifact with the version of narrowgate that built it"
        )


def _count(labels: list[str]) -> dict[str, int]:
    return {label: labels.count(label) for label in dict.fromkeys(labels)}
