"""Packed linear layers in the places where transformers' models have theirs."""

import torch
from torch import Tensor, nn

from compression.packed import Bf16Linear, PackedLinear


class PackedModule(nn.Module):
    """A packed layer for inputs with any number of leading dimensions."""

    def __init__(self, packed: PackedLinear) -> None:
        super().__init__()
        self.packed = packed
        self.in_features, self.out_features = packed.columns, packed.rows

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [..., columns]`` to ``[..., rows]`` of the same dtype."""
        rows: Tensor = self.packed(x.reshape(-1, x.shape[-1]))
        return rows.view(*x.shape[:-1], -1)


class Vacant(nn.Module):
    """The place of a layer whose codes are put in after the other weights are loaded."""


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether a module is ``x Wᵀ + b`` and no more; Falcon has a name of its own for it."""
    return type(module) is nn.Linear or type(module).__name__ == "FalconLinear"


def dense_layer(module: nn.Module) -> PackedLinear | None:
    """Return the bf16 layer for a linear module of transformers, or None for any other module."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor):
        return None
    if is_plain_linear(module):
        return Bf16Linear(weight.detach(), _detached(bias))
    if type(module).__name__ == "Conv1D":  # GPT-2's: a linear layer with its weight transposed
        return Bf16Linear(weight.detach().t().contiguous(), _detached(bias))
    return None


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().to(torch.bfloat16)
