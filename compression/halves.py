"""The two halves of a decoder layer, each ``x + block(norm(x))`` with a projection at its end.

Heads are removed at the input of the first one's projection, neurons at that of the second's.
"""

from torch import Tensor, nn


class AttentionHalf(nn.Module):
    """Norm, attention and ``o_proj``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = layer.get_submodule("input_layernorm")
        self.block = layer.get_submodule("self_attn")
        self.projection = _linear(layer, "self_attn.o_proj")

    def forward(self, hidden: Tensor, **arguments: object) -> Tensor:
        """Return hidden states of the shape of ``hidden`` [b, T, hidden]."""
        mixed: Tensor = self.block(self.norm(hidden), **arguments)[0]
        return hidden + mixed


class MlpHalf(nn.Module):
    """Norm, MLP and ``down_proj``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = layer.get_submodule("post_attention_layernorm")
        self.block = layer.get_submodule("mlp")
        self.projection = _linear(layer, "mlp.down_proj")

    def forward(self, hidden: Tensor, **arguments: object) -> Tensor:
        """Return hidden states of the shape of ``hidden`` [b, T, hidden]."""
        mixed: Tensor = self.block(self.norm(hidden))
        return hidden + mixed


Half = AttentionHalf | MlpHalf


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{path} is {type(module).__name__}, not a linear layer")
    return module
