"""What can be told of any architecture before its weights are read, and what is refused."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, DynamicCache
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from compression.architecture import read_config
from compression.errors import UnsupportedArchitecture
from compression.outline import build_outline_model
from gateway.engine.general.attention import NAME
from gateway.engine.general.decoder import GeneralShape


@dataclass(frozen=True, slots=True)
class Blueprint:
    """An architecture that can be served."""

    model: Any
    """transformers' model on the meta device."""
    shape: GeneralShape

    @property
    def attention(self) -> str:
        """Return the attention it runs on: ours, or its own where it knows no other."""
        return _attention(self.model)


def read_blueprint(directory: Path) -> Blueprint:
    """Build the model without weights and see whether the engine can serve it.

    Raises:
        UnsupportedArchitecture: it cannot; says why, and what can.
    """
    raw = read_config(directory)
    name = next(iter(raw.get("architectures") or []), raw.get("model_type"))
    where = f"{str(directory)!r}: architecture {name!r} is not supported by the embedded engine"
    reason = _refusal(raw)
    if reason is not None:
        raise UnsupportedArchitecture(f"{where}: {reason}")
    model = build_outline_model(directory)
    reason = _model_refusal(model, name)
    if reason is not None:
        raise UnsupportedArchitecture(f"{where}: {reason}: serve it with vLLM")
    sizes = _sizes(model)
    if len(sizes) != 1:
        raise UnsupportedArchitecture(
            f"{where}: its layers cache keys and values of different sizes "
            f"({', '.join(map(str, sorted(sizes)))}): serve it with vLLM"
        )
    [(num_kv_heads, head_dim)] = sizes
    config = model.config
    return Blueprint(
        model,
        GeneralShape(
            name=type(model).__name__,
            vocab_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            context=_context(config),
        ),
    )


def _refusal(raw: dict[str, Any]) -> str | None:
    """Return why a config.json is refused, if it is."""
    if raw.get("is_encoder_decoder"):
        return "it has an encoder, and only decoders are served: use a decoder-only checkpoint"
    auto_map = raw.get("auto_map")
    if auto_map and raw.get("model_type") not in CONFIG_MAPPING:
        return "it runs code from the checkpoint, which is never done here: serve it with vLLM"
    if raw.get("kv_lora_rank"):
        return "its attention caches latents (MLA), not keys and values: serve it with vLLM"
    return None


def _model_refusal(model: Any, name: object) -> str | None:
    """Return why a model is refused, if it is."""
    config = model.config
    if type(model).__name__ != name:
        return f"transformers builds a {type(model).__name__!r} of it, which is another model"
    if config.get_text_config() is not config:
        return "it has parts beyond text"
    if getattr(model, "_is_stateful", False):
        return "it has recurrent states, and only keys and values are cached"
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    others = kinds - {DynamicLayer, DynamicSlidingWindowLayer}
    if others:
        return f"it caches more than keys and values ({', '.join(k.__name__ for k in others)})"
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        return "its attention reads in both directions"
    return None


def _attention(model: Any) -> str:
    return NAME if getattr(model, "_supports_attention_backend", False) else "eager"


class _Recorder(DynamicLayer):  # type: ignore[misc]  # transformers ships no types
    """Notes what a layer caches."""

    shapes: tuple[tuple[int, ...], ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Note the shapes and do as a plain cache does."""
        self.shapes = (tuple(key_states.shape), tuple(value_states.shape))
        return super().update(key_states, value_states)


def _sizes(model: Any) -> set[tuple[int, ...]]:
    """Return every ``(kv_heads, head_dim)`` that layers cache, seen by running without weights.

    A size ``(kv_heads, key size, value size)`` is of a layer whose keys and values differ. Where a
    model looks at values as it runs, its config tells.
    """
    cache = TransformersCache(layer_class_to_replicate=_Recorder)
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    model.set_attn_implementation(_attention(model))
    try:
        with torch.no_grad():
            decoder_of(model)(input_ids=ids, past_key_values=cache, use_cache=True)
    except (NotImplementedError, RuntimeError, AttributeError, TypeError):
        return {_configured_size(model.config)}
    shapes: list[Any] = [getattr(layer, "shapes", ()) for layer in cache.layers]
    if len(shapes) != model.config.num_hidden_layers or not all(shapes):
        return {_configured_size(model.config)}
    return {
        (key[1], key[3]) if key == value else (key[1], key[3], value[3]) for key, value in shapes
    }


def _configured_size(config: Any) -> tuple[int, int]:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return getattr(config, "num_key_value_heads", None) or heads, head_dim


def _context(config: Any) -> int | None:
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    is_dynamic = rope.get("rope_type") == "dynamic"
    return math.floor(length * rope["factor"]) if is_dynamic else length


def decoder_of(model: Any) -> nn.Module:
    """Return the part of a causal language model that ends in the final hidden states."""
    decoder = model.get_decoder()
    inner: nn.Module = model.get_submodule("model") if decoder is model else decoder
    return inner
