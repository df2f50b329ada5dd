"""Rotary embeddings of transformers that remember earlier texts, made to depend on one alone."""

from typing import Any

from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def pin_longrope(model: nn.Module, max_tokens: int) -> None:
    """Choose longrope's factors by the context, as the lean decoder does.

    transformers would choose them anew at each step, and a text that grows past the original
    length would be turned in two ways.
    """
    for module in _rotaries(model, "longrope"):
        original = module.config.rope_parameters["original_max_position_embeddings"]
        compute = ROPE_INIT_FUNCTIONS["longrope"]
        length = original + 1 if max_tokens > original else original
        chosen, _ = compute(module.config, module.inv_freq.device, seq_len=length)
        module.original_inv_freq.copy_(chosen)
        module.long_inv_freq = chosen


def forget(model: nn.Module) -> None:
    """Let dynamic scaling begin anew, so that it follows the next sequence alone."""
    for module in _rotaries(model, "dynamic"):
        module.inv_freq = module.original_inv_freq
        module.max_seq_len_cached = module.original_max_seq_len


def _rotaries(model: nn.Module, kind: str) -> list[Any]:
    return [
        module
        for module in model.modules()
        if getattr(module, "rope_type", None) == kind and hasattr(module, "original_inv_freq")
    ]
