"""Arrays at addresses: what compiled code sees of tensors that Python owns."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from compression.kernels.llvm import Code


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    """Return an address as a pointer without a type."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which may be beyond all memory."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        Code(builder).prefetch(arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """Return the float32 that 32 bits stand for."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of_float(typing_context: Any, value: Any) -> Any:
    """Return the 32 bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@njit(inline="always")
def floats(address: int, count: int) -> Any:
    """Return ``count`` float32 at an address."""
    return carray(_pointer(address), count, np.float32)


@njit(inline="always")
def halves(address: int, count: int) -> Any:
    """Return ``count`` bf16 at an address, as the 16 bits of each."""
    return carray(_pointer(address), count, np.uint16)


@njit(inline="always")
def shorts(address: int, count: int) -> Any:
    """Return ``count`` int16 at an address."""
    return carray(_pointer(address), count, np.int16)


@njit(inline="always")
def bytes_at(address: int, count: int) -> Any:
    """Return ``count`` uint8 at an address."""
    return carray(_pointer(address), count, np.uint8)


@njit(inline="always")
def codes(address: int, count: int) -> Any:
    """Return ``count`` int8 at an address."""
    return carray(_pointer(address), count, np.int8)


@njit(inline="always")
def ints(address: int, count: int) -> Any:
    """Return ``count`` int32 at an address."""
    return carray(_pointer(address), count, np.int32)


@njit(inline="always")
def longs(address: int, count: int) -> Any:
    """Return ``count`` int64 at an address."""
    return carray(_pointer(address), count, np.int64)


@njit(inline="always")
def widen(half: int) -> float:
    """Return the float32 of a bf16's 16 bits."""
    return float_of_bits(np.int32(np.uint32(half) << np.uint32(16)))


@njit(inline="always")
def narrow(value: float) -> int:
    """Return the 16 bits of the nearest bf16, ties to even."""
    bits = np.uint32(bits_of_float(np.float32(value)))
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint16(0x7FC0)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
