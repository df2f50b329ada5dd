"""The keys and values of one sequence: every layer keeps the bytes of its codecs and no others."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.architecture import Architecture
from compression.kv.codec import KvCodec, Storage
from compression.kv.plain import PlainCodec


@dataclass(frozen=True, slots=True)
class LayerCodecs:
    """How one layer keeps its keys and its values."""

    key: KvCodec
    value: KvCodec


class LayerCache(ABC):
    """Keys and values of one layer, kept as they arrive; what is kept is never written again."""

    def __init__(self, codecs: LayerCodecs) -> None:
        self.codecs = codecs

    @abstractmethod
    def append(self, start: int, heads: Tensor) -> None:
        """Keep ``heads [m, 2 * kv_heads, head_dim]``, keys first, from position ``start`` on."""

    @abstractmethod
    def read(self, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values of positions ``0…stop``, each ``[1, kv_heads, stop, head_dim]``.

        As their codecs decode them: rotated, where a codec rotates.
        """

    @property
    @abstractmethod
    def storage(self) -> tuple[Storage, Storage]:
        """Return the live tensors of keys and of values, ``[max_tokens, …]``."""

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes of one token, read from the live tensors."""
        return sum(part[:1].nbytes for parts in self.storage for part in parts)


class PlainLayerCache(LayerCache):
    """bf16: keys and values side by side, kept with one copy."""

    def __init__(self, codecs: LayerCodecs, max_tokens: int, kv_heads: int) -> None:
        super().__init__(codecs)
        shape = (max_tokens, 2 * kv_heads, codecs.key.head_dim)
        self._kept = torch.empty(shape, dtype=torch.bfloat16)
        self._kv_heads = kv_heads

    def append(self, start: int, heads: Tensor) -> None:
        """Keep ``heads [m, 2 * kv_heads, head_dim]`` from position ``start`` on."""
        self._kept[start : start + heads.shape[0]] = heads

    def read(self, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values of positions ``0…stop``."""
        seen = self._kept[:stop].to(dtype).transpose(0, 1).unsqueeze(0)
        return seen[:, : self._kv_heads], seen[:, self._kv_heads :]

    @property
    def storage(self) -> tuple[Storage, Storage]:
        """Return the live tensors of keys and of values."""
        return (self._kept[:, : self._kv_heads],), (self._kept[:, self._kv_heads :],)


class CodedLayerCache(LayerCache):
    """Keys and values each in the bytes of a codec; decoded whenever attention reads them."""

    def __init__(self, codecs: LayerCodecs, max_tokens: int, kv_heads: int) -> None:
        super().__init__(codecs)
        self._keys = codecs.key.allocate(max_tokens, kv_heads)
        self._values = codecs.value.allocate(max_tokens, kv_heads)
        self._kv_heads = kv_heads

    def append(self, start: int, heads: Tensor) -> None:
        """Keep ``heads [m, 2 * kv_heads, head_dim]`` from position ``start`` on."""
        keys, values = heads[:, : self._kv_heads], heads[:, self._kv_heads :]
        _write(self._keys, start, self.codecs.key.encode(keys))
        _write(self._values, start, self.codecs.value.encode(values))

    def read(self, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values of positions ``0…stop``, rotated as their codecs do."""
        keys = self.codecs.key.decode(_first(self._keys, stop), dtype)
        values = self.codecs.value.decode(_first(self._values, stop), dtype)
        return keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)

    @property
    def storage(self) -> tuple[Storage, Storage]:
        """Return the live tensors of keys and of values."""
        return self._keys, self._values


class Cache:
    """Room for ``max_tokens`` positions; memory is touched only as they are filled."""

    def __init__(
        self, architecture: Architecture, codecs: Sequence[LayerCodecs], max_tokens: int
    ) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        """Positions filled so far."""
        self.layers = tuple(
            _layer_cache(layer, max_tokens, architecture.num_kv_heads) for layer in codecs
        )

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes that one token takes in all layers, read from the live tensors."""
        return sum(layer.bytes_per_token for layer in self.layers)


def _layer_cache(codecs: LayerCodecs, max_tokens: int, kv_heads: int) -> LayerCache:
    is_plain = isinstance(codecs.key, PlainCodec) and isinstance(codecs.value, PlainCodec)
    return (PlainLayerCache if is_plain else CodedLayerCache)(codecs, max_tokens, kv_heads)


def _write(storage: Storage, start: int, new: Storage) -> None:
    for kept, part in zip(storage, new, strict=True):
        kept[start : start + part.shape[0]] = part


def _first(storage: Storage, stop: int) -> Storage:
    return tuple(part[:stop] for part in storage)
