"""The keys and values of one sequence, in bf16, for every layer."""

import torch
from torch import Tensor

from compression.architecture import Architecture


class Cache:
    """Room for ``max_tokens`` positions; memory is touched only as they are filled."""

    def __init__(self, architecture: Architecture, max_tokens: int) -> None:
        heads = 2 * architecture.num_kv_heads
        shape = (architecture.num_layers, max_tokens, heads, architecture.head_dim)
        self.max_tokens = max_tokens
        self.length = 0
        """Positions filled so far."""
        self.layers: tuple[Tensor, ...] = torch.empty(shape, dtype=torch.bfloat16).unbind(0)
        """Per layer ``[max_tokens, 2 * kv_heads, head_dim]``: the keys' heads, then the values'."""
