"""What a KV cache must know of a model: free of torch."""

from typing import Protocol


class KvShape(Protocol):
    """Layers with keys and values of one size."""

    @property
    def num_layers(self) -> int:
        """Return how many layers keep keys and values."""

    @property
    def num_kv_heads(self) -> int:
        """Return how many heads of keys, and of values, a layer has."""

    @property
    def head_dim(self) -> int:
        """Return the size of a head."""
