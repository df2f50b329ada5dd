"""The linear layers of any causal language model that transformers can build from its config."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from compression.errors import UnsupportedArchitecture
from compression.facts import Outline

_BUILD_ERRORS = (
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What transformers raises for a config it cannot build; code from the checkpoint never runs."""


def build_outline_model(directory: Path) -> Any:
    """Return transformers' model of a config on the meta device, which takes no memory, in bf16.

    Raises:
        UnsupportedArchitecture: transformers cannot build it.
    """
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, trust_remote_code=False
            )
    except _BUILD_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UnsupportedArchitecture(
            f"{str(directory)!r}: transformers builds no causal language model of this config "
            f"({reason})"
        ) from None


def read_outline(directory: Path) -> Outline:
    """Build the model without weights and list its ``nn.Linear``.

    The output head is left out: engines keep it as it is.

    Raises:
        UnsupportedArchitecture: transformers cannot build it, it has no linear layer, or most of
            what it computes with are experts stacked in one tensor, which are none.
    """
    model = build_outline_model(directory)
    name = type(model).__name__
    _require_no_stacked_experts(model, name, directory)
    head = model.get_output_embeddings()
    linears = {
        path: tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if not linears:
        raise UnsupportedArchitecture(
            f"{str(directory)!r}: {name!r} has no linear layer (torch.nn.Linear) to quantize: "
            "serve it as it is"
        )
    return Outline(name=name, linears=MappingProxyType(linears))


def _require_no_stacked_experts(model: nn.Module, name: str, directory: Path) -> None:
    for path, parameter in model.named_parameters():
        if parameter.dim() == 3 and "experts" in path:
            raise UnsupportedArchitecture(
                f"{str(directory)!r}: {name!r} is a mixture of experts, whose experts are one "
                f"tensor ({path!r}) and no linear layers: it would stay as it is, so serve it as "
                "it is, or give a dense model"
            )
