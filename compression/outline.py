"""The linear layers and experts of any causal language model that transformers can build."""

from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from compression.errors import UnsupportedArchitecture
from compression.experts import is_experts, read_naming, routers, stacked
from compression.facts import Outline, checkpoint_files, read_headers

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
    """Build the model without weights and list its ``nn.Linear`` and its experts' matrices.

    The output head is left out, because engines keep it as it is, and so is what chooses experts.

    Raises:
        SourceError: there is no safetensors file.
        UnsupportedArchitecture: transformers cannot build it, it has no linear layer, or its
            experts are stacked in a way that is not known.
        CorruptCheckpoint: a file is truncated or unreadable, or an expert is missing.
    """
    model = build_outline_model(directory)
    name = type(model).__name__
    _require_known_experts(model, name, directory)
    modules = _linear_modules(model)
    if not modules and not stacked(model):
        raise UnsupportedArchitecture(
            f"{str(directory)!r}: {name!r} has no linear layer (torch.nn.Linear) to quantize: "
            "serve it as it is"
        )
    names = read_headers(directory, checkpoint_files(directory))
    naming = read_naming(model, names, repr(str(directory)))
    choosing = routers(model)
    linears = {
        naming.weights[path]: tuple(module.weight.shape)
        for path, module in modules.items()
        if path in naming.weights and path not in choosing
    }
    for parameter, experts in naming.experts.items():
        rows, columns = _matrix_shape(model, parameter)
        for matrices in experts:
            shape = (rows // len(matrices), columns)
            linears |= {matrix.removesuffix(".weight"): shape for matrix in matrices}
    return Outline(
        name=name,
        linears=MappingProxyType(linears),
        stacks=naming.stacks,
        routers=frozenset(naming.weights[path] for path in choosing if path in naming.weights),
    )


def _linear_modules(model: Any) -> dict[str, nn.Linear]:
    """Return the linear layers by path, without the output head."""
    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _matrix_shape(model: Any, parameter: str) -> tuple[int, int]:
    """Return [rows, columns] of one expert's part of a parameter."""
    _, first, second = model.get_parameter(parameter).shape
    is_transposed = model.get_submodule(parameter.rpartition(".")[0]).is_transposed
    return (second, first) if is_transposed else (first, second)


def _require_known_experts(model: nn.Module, name: str, directory: Path) -> None:
    for path, parameter in model.named_parameters():
        owner = model.get_submodule(path.rpartition(".")[0])
        if parameter.dim() == 3 and "experts" in path and not is_experts(owner):
            raise UnsupportedArchitecture(
                f"{str(directory)!r}: {name!r} is a mixture of experts, whose experts "
                f"({path!r}) are run by code of their own: they would stay as they are, so serve "
                "the model with recipe full, or give another one"
            )
