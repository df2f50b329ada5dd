"""The family as which a pruned checkpoint is written: one that engines load unchanged."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from compression.architecture import Architecture
from compression.errors import RecipeError

KNOWN: Mapping[str, str] = MappingProxyType(
    {
        "LlamaForCausalLM": "llama",
        "MistralForCausalLM": "mistral",
        "Qwen2ForCausalLM": "qwen2",
        "Qwen3ForCausalLM": "qwen3",
    }
)
"""Architectures that can be pruned, and transformers' names of their configs."""
_QWEN2_ONLY = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
_LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")


@dataclass(frozen=True, slots=True)
class Form:
    """A family, and which of the projections that pruning shortens have a bias there."""

    architecture: str
    output_bias: bool
    """``o_proj`` has one, and so have q, k and v."""
    mlp_bias: bool
    """``down_proj`` has one, and so have gate and up."""


def choose_form(architecture: Architecture, heads: int) -> Form:
    """Return how a checkpoint of ``architecture`` is written once it has ``heads`` query heads.

    The family stays where it can. transformers' Llama refuses head counts that do not divide the
    hidden size; Mistral computes the same without that rule. vLLM's Qwen2 ignores ``head_dim``, so
    with other heads it becomes a Llama, which computes the same with a bias of zeros in ``o_proj``.

    Raises:
        RecipeError: no family that engines know holds the result.
    """
    name = architecture.name
    if name not in KNOWN:
        raise RecipeError(
            f"'prune' cannot be used with {name!r}: pruning knows Llama, Mistral, Qwen2, Qwen3; "
            "remove 'prune' from the recipe"
        )
    output_bias, mlp_bias = architecture.output_bias, architecture.mlp_bias
    keeps_heads = heads == architecture.num_heads
    divides = architecture.hidden_size % heads == 0
    if keeps_heads or name in {"MistralForCausalLM", "Qwen3ForCausalLM"}:
        return Form(name, output_bias, mlp_bias)
    if any(architecture.windows):
        raise RecipeError(
            f"'prune' would leave {heads} query heads, for which {name!r} becomes another family, "
            "and that one has no sliding_window as this model has: change prune.query_heads or "
            "prune.kv_groups"
        )
    if divides:
        return Form("LlamaForCausalLM", architecture.qkv_bias, mlp_bias)
    if architecture.qkv_bias or mlp_bias:
        raise RecipeError(
            f"'prune' would leave {heads} query heads, which do not divide the hidden size "
            f"{architecture.hidden_size} as a Llama's must, and other families have no biases: "
            "change prune.query_heads or prune.kv_groups"
        )
    return Form("MistralForCausalLM", output_bias=False, mlp_bias=False)


def emitted_config(
    config: Mapping[str, Any], form: Form, *, heads: int, kv_heads: int, head_dim: int, neurons: int
) -> dict[str, Any]:
    """Return the config.json of the pruned checkpoint."""
    emitted = dict(config)
    is_renamed = config.get("architectures") != [form.architecture]
    if is_renamed:
        for key in _QWEN2_ONLY:
            emitted.pop(key, None)
    emitted |= {
        "architectures": [form.architecture],
        "model_type": KNOWN[form.architecture],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": neurons,
    }
    match form.architecture:
        case "LlamaForCausalLM":
            emitted |= {"attention_bias": form.output_bias, "mlp_bias": form.mlp_bias}
        case "Qwen3ForCausalLM":
            emitted["attention_bias"] = form.output_bias
        case "MistralForCausalLM":
            for key in _LLAMA_ONLY:
                emitted.pop(key, None)
            if is_renamed:
                emitted["sliding_window"] = None
    return emitted
