"""One piece of memory for all weights of a model, on huge pages where the system gives them.

A decoder's step reads every weight once. On pages of 4 KiB the processor looks up some 30,000
addresses a step for a model of 130 MB.
"""

import ctypes
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

from compression.packed.linear import PackedLinear

_ALIGNMENT = 64
"""Bytes of a cache line, where every tensor begins."""
_HUGE = 1 << 21
_RETURN_BYTES = 1 << 26
"""Of weights that were moved, before the memory that they lay in goes back to the system."""


def gather(linears: Iterable[PackedLinear]) -> None:
    """Move the tensors of layers into one piece of memory, a layer at a time.

    They stay the same to look at; what they lay in before is freed. To be done before the first
    product: a program that was written holds the addresses of before.
    """
    layers = list(linears)
    size = sum(_room(held) for layer in layers for held in _tensors(layer))
    if size < _HUGE:
        return
    memory = _memory(size)
    start = returned = 0
    for layer in layers:
        for held in _tensors(layer):
            place = memory[start : start + held.nbytes].view(held.dtype).view(held.shape)
            place.copy_(held)
            held.data = place
            start += _room(held)
        returned += layer.weight_bytes
        if returned > _RETURN_BYTES:
            returned = 0
            return_memory()
    return_memory()


def return_memory() -> None:
    """Give memory that was freed back to the system; glibc keeps it in the middle of its heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _tensors(layer: PackedLinear) -> list[Tensor]:
    return [*layer.buffers(), *layer.parameters()]


def _room(held: Tensor) -> int:
    return -(-held.nbytes // _ALIGNMENT) * _ALIGNMENT


def _memory(size: int) -> Tensor:
    """Return uint8 ``[size]`` that begins at a huge page."""
    held = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        held.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(held, dtype=torch.uint8)
    first = -whole.data_ptr() % _HUGE
    return whole[first : first + size]
