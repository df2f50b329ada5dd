"""Which dtype each weight outside the linear layers has: float32 activations over bf16 tables."""

from typing import Any

import torch
from torch import Tensor, nn

from gateway.engine.general.linears import PackedModule


def settle(model: nn.Module) -> None:
    """Put norms and other small weights into float32; keep tables and stacked experts in bf16.

    What is kept in bf16 takes and gives float32, so that all between is computed in float32.
    """
    inside = {
        id(part)
        for each in model.modules()
        if isinstance(each, PackedModule)
        for part in each.modules()
    }
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if id(module) in inside or not own:
            continue
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(_widen)
        elif any(parameter.dim() > 2 for parameter in own):
            module.register_forward_pre_hook(_narrow, with_kwargs=True)
            module.register_forward_hook(_widen)
        else:
            for parameter in own:
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(each, dtype) for each in value)
    return value


def _narrow(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    cast = {key: _cast(value, torch.bfloat16) for key, value in named.items()}
    return _cast(inputs, torch.bfloat16), cast


def _widen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    return _cast(output, torch.float32)
