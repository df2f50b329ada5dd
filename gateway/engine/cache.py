"""The keys and values of one sequence: every layer keeps the bytes of its codecs and no others.

A cache reserves addresses for as many tokens as its sequence may reach and is given memory by the
system as they are filled. So each layer's keys lie in one piece for attention, and what is really
held grows in pages and can be counted in them (:mod:`gateway.engine.pages`).
"""

import mmap
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from compression.kv.codec import KvCodec, Storage
from compression.kv.plain import PlainCodec
from compression.kv.shape import KvShape


@dataclass(frozen=True, slots=True)
class LayerCodecs:
    """How one layer keeps its keys and its values."""

    key: KvCodec
    value: KvCodec

    @property
    def is_plain(self) -> bool:
        """Return whether both are kept in bf16; they then lie side by side in one tensor."""
        return isinstance(self.key, PlainCodec) and isinstance(self.value, PlainCodec)

    def encode(self, heads: Tensor) -> Storage:
        """Return what is kept of ``heads [m, 2 * kv_heads, head_dim]``, keys first."""
        if self.is_plain:
            return (heads.to(torch.bfloat16),)
        keys, values = heads.chunk(2, dim=1)
        return self.key.encode(keys) + self.value.encode(values)


class LayerCache:
    """Keys and values of one layer, kept as they arrive; what is kept is never written again."""

    def __init__(self, codecs: LayerCodecs, parts: Storage, num_key_parts: int) -> None:
        self.codecs = codecs
        self._parts = parts
        self._num_key_parts = num_key_parts

    def write(self, start: int, encoded: Storage) -> None:
        """Keep what :meth:`LayerCodecs.encode` made of the tokens from position ``start`` on."""
        for kept, part in zip(self._parts, encoded, strict=True):
            kept[start : start + part.shape[0]] = part

    def copy(self, other: "LayerCache", count: int) -> None:
        """Keep the first ``count`` tokens of another cache, byte for byte."""
        self.write(0, tuple(part[:count] for part in other._parts))

    def read(self, stop: int, dtype: torch.dtype, *, first: int = 0) -> tuple[Tensor, Tensor]:
        """Return keys and values of positions ``first…stop``, each ``[1, kv_heads, n, head_dim]``.

        As their codecs decode them: rotated, where a codec rotates.
        """
        if self.codecs.is_plain:
            seen = self._parts[0][first:stop].to(dtype).transpose(0, 1).unsqueeze(0)
            keys, values = seen.chunk(2, dim=1)
            return keys, values
        stored = tuple(part[first:stop] for part in self._parts)
        keys = self.codecs.key.decode(stored[: self._num_key_parts], dtype)
        values = self.codecs.value.decode(stored[self._num_key_parts :], dtype)
        return keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)

    @property
    def num_parts(self) -> int:
        """Return how many tensors there are, each with memory of its own."""
        return len(self._parts)

    @property
    def storage(self) -> tuple[Storage, Storage]:
        """Return the live tensors of keys and of values, ``[max_tokens, …]``."""
        if self.codecs.is_plain:
            keys, values = self._parts[0].chunk(2, dim=1)
            return (keys,), (values,)
        return self._parts[: self._num_key_parts], self._parts[self._num_key_parts :]

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Return where keys, their scales, values and their scales begin; 0 where are none."""
        keys, values = self.storage
        places = [part.data_ptr() for part in (*keys, *values)]
        if len(keys) == 1:
            places.insert(1, 0)
        return places[0], places[1], places[2], places[3] if len(values) > 1 else 0

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes of one token, read from the live tensors."""
        return sum(part[:1].nbytes for part in self._parts)


class Cache:
    """Room for ``max_tokens`` positions; memory is touched only as they are filled."""

    def __init__(
        self, architecture: KvShape, codecs: tuple[LayerCodecs, ...], max_tokens: int
    ) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        """Positions filled so far."""
        self.codecs = codecs
        plan = [_parts(each, architecture.num_kv_heads) for each in codecs]
        sizes = [_padded_bytes(part, max_tokens) for parts, _ in plan for part in parts]
        addresses = _Addresses(sum(sizes))
        self.layers = tuple(
            LayerCache(each, addresses.take(parts, max_tokens), num_key_parts)
            for each, (parts, num_key_parts) in zip(codecs, plan, strict=True)
        )
        self._addresses = np.array(
            [address for layer in self.layers for address in layer.addresses], np.int64
        )

    @property
    def addresses(self) -> int:
        """Return the address of a table of int64: each layer's four addresses."""
        return self._addresses.ctypes.data

    def copy(self, other: "Cache", count: int) -> None:
        """Begin with the first ``count`` tokens of another cache of the same model."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.copy(theirs, count)
        self.length = count

    @property
    def bytes_per_token(self) -> int:
        """Return the bytes that one token takes in all layers, read from the live tensors."""
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def rounding_bytes(self) -> int:
        """Return the most that a cache takes beside its tokens: a part's last page is not full."""
        return mmap.PAGESIZE * sum(layer.num_parts for layer in self.layers)


def _parts(codecs: LayerCodecs, kv_heads: int) -> tuple[Storage, int]:
    """Return what is kept of one token, and how many of the tensors are the keys'."""
    heads = torch.zeros(1, 2 * kv_heads, codecs.key.head_dim)
    num_key_parts = 1 if codecs.is_plain else len(codecs.key.encode(heads[:, :kv_heads]))
    return codecs.encode(heads), num_key_parts


def _padded_bytes(part: Tensor, max_tokens: int) -> int:
    return -(-(part.nbytes * max_tokens) // mmap.PAGESIZE) * mmap.PAGESIZE


@dataclass(slots=True)
class _Addresses:
    """Addresses of memory that the system gives page by page, when they are first written."""

    size: int
    _memory: Tensor = field(init=False)
    _taken: int = 0

    def __post_init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        memory = mmap.mmap(-1, max(self.size, mmap.PAGESIZE), flags=flags)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # Huge pages would take memory for tokens that have not come yet.
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._memory = torch.frombuffer(memory, dtype=torch.uint8)

    def take(self, parts: Storage, max_tokens: int) -> Storage:
        """Return a tensor ``[max_tokens, …]`` for each part ``[1, …]`` of one token."""
        pieces = []
        for part in parts:
            size = part.nbytes * max_tokens
            piece = self._memory[self._taken : self._taken + size].view(part.dtype)
            self._taken += _padded_bytes(part, max_tokens)
            pieces.append(piece.view(max_tokens, *part.shape[1:]))
        return tuple(pieces)
