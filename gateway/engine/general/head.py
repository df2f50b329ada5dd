"""The way from final hidden states to logits, as each family has it: scaled, capped or plain."""

import copy
from typing import Any

from torch import Tensor, nn


class _Outputs:
    """What a decoder returns; every field but the hidden states is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]


class _Given(nn.Module):
    """Stands where the decoder is and gives the hidden states that it is given."""

    @property
    def decoder(self) -> "_Given":
        """Return itself: some families call a decoder inside their decoder."""
        return self

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> _Outputs:
        """Return ``inputs_embeds`` as the final hidden states."""
        return _Outputs(inputs_embeds)


def head_of(model: nn.Module, decoder: nn.Module) -> nn.Module:
    """Return a model that shares all weights and takes final hidden states for ``inputs_embeds``.

    So a family's own scaling and capping of logits are applied by its own code.
    """
    head = copy.copy(model)
    head._modules = {
        name: _Given() if child is not None and _holds(child, decoder) else child
        for name, child in model._modules.items()
    }
    return head


def _holds(module: nn.Module, part: nn.Module) -> bool:
    return any(each is part for each in module.modules())
