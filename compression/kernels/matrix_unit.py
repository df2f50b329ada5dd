"""The processor's unit for products of matrices: AMX, its tiles and their instructions.

A tile is up to 16 rows of 64 bytes. The sums of a product are 16 x 16 numbers; of its second factor
each row holds four rows of a matrix, their bytes side by side (Intel 64 and IA-32 Architectures
Software Developer's Manual, volume 1, chapter 18). Tiles that do not begin at a cache line are read
several times slower.
"""

import ctypes
import platform
from collections.abc import Sequence
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from compression.kernels.llvm import I8, I32, Code, long, processor, wide

TILE = 16
"""Rows of a tile."""
TILE_BYTES = 64
"""Bytes of a tile's row: a cache line."""
QUAD = 4
"""Bytes of the second factor that lie side by side."""
INT8_TIMES_INT8, INT8_TIMES_UINT8 = "llvm.x86.tdpbssd", "llvm.x86.tdpbsud"
BF16_TIMES_BF16 = "llvm.x86.tdpbf16ps"
"""Sums are float32."""
HAS_MATRIX_UNIT = {"+amx-tile", "+amx-int8", "+amx-bf16"} <= set(processor()[1].split(","))
"""Whether code for the unit can be made here; what runs it needs :func:`permission`."""
MOST_COLUMNS = 1 << 16
"""Of a weight: sums of int8 fit 32 bits, and rows of inputs the memory of a thread."""

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_VOID = ir.VoidType()


@cache
def permission() -> bool:
    """Ask the system once for the unit's registers, for all threads; return whether they are ours.

    Linux grants them to a process that asks (kernel documentation, "Using XSTATE features in user
    space applications").
    """
    if not HAS_MATRIX_UNIT or platform.system() != "Linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


class TileCode(Code):
    """Writes the unit's instructions; tiles are counted from 0 to 7."""

    def configure(self, name: str, rows: list[int], columns: list[int]) -> None:
        """Set every tile's rows and bytes of a row; what they held is lost."""
        shape = bytearray(64)
        shape[0] = 1
        for tile, (height, width) in enumerate(zip(rows, columns, strict=True)):
            shape[16 + 2 * tile] = width
            shape[48 + tile] = height
        kind = ir.ArrayType(I8, len(shape))
        held = cgutils.global_constant(self.builder, name, ir.Constant(kind, shape))
        place = self.builder.bitcast(held, I8.as_pointer())
        self.call("llvm.x86.ldtilecfg", _VOID, place)

    def zero_tile(self, tile: int) -> None:
        self.call("llvm.x86.tilezero", _VOID, ir.Constant(I8, tile))

    def load_tile(self, tile: int, address: Any, stride: Any) -> None:
        self.call("llvm.x86.tileloadd64", _VOID, *self._of(tile, address, stride))

    def store_tile(self, tile: int, address: Any, stride: Any = None) -> None:
        """Store rows of a tile, one after another or ``stride`` bytes apart."""
        arguments = self._of(tile, address, long(TILE_BYTES) if stride is None else stride)
        self.call("llvm.x86.tilestored64", _VOID, *arguments)

    def multiply_tiles(self, instruction: str, sums: int, left: int, right: int) -> None:
        """Add a product of tiles to sums."""
        self.call(instruction, _VOID, *(ir.Constant(I8, tile) for tile in (sums, left, right)))

    def _of(self, tile: int, address: Any, stride: Any) -> tuple[Any, Any, Any]:
        place = self.builder.inttoptr(address, I8.as_pointer())
        return ir.Constant(I8, tile), place, stride


@intrinsic
def release_tiles(typing_context: Any) -> Any:
    """Give the tiles back: the system need not keep them any more."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        Code(builder).call("llvm.x86.tilerelease", _VOID)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def interleave(
    typing_context: Any, codes: Any, padded: Any, planes: Any, quads: Any, blocks: Any
) -> Any:
    """Write four rows of codes as columns of tiles, four bytes of a row side by side.

    A row of ``codes`` is two planes of ``padded`` bytes, of which ``planes`` count; of each block
    of 64 bytes a plane's tile comes after the other's at ``quads``.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        codes, padded, planes, quads, blocks = arguments
        code = Code(builder)

        def block(index: Any) -> None:
            def plane(number: Any) -> None:
                source = code.at(codes, builder.mul(padded, number), code.times(index, TILE_BYTES))
                tile = builder.add(builder.mul(index, planes), number)
                target = code.at(quads, code.times(tile, TILE * TILE_BYTES))
                rows = [
                    code.load(code.at(source, code.times(padded, 2 * row)), wide(I32, TILE))
                    for row in range(4)
                ]
                first = _merged(builder, rows[0], rows[1], 1)
                second = _merged(builder, rows[2], rows[3], 1)
                fours = [
                    four
                    for left, right in zip(first, second, strict=True)
                    for four in _merged(builder, left, right, 2)
                ]
                for column in range(TILE):
                    lanes = [column % 4 * 4 + at for at in range(4)]
                    quad = builder.shuffle_vector(
                        fours[column // 4], fours[0], ir.Constant(wide(I32, 4), lanes)
                    )
                    code.store(quad, code.at(target, long(column * TILE_BYTES)))

            code.steps(long(0), planes, 1, plane)

        code.steps(long(0), blocks, 1, block)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def _merged(builder: Any, left: Any, right: Any, size: int) -> list[Any]:
    """Return two vectors, taking ``size`` lanes of one and of the other in turn."""
    order: list[int] = []
    for lane in range(0, TILE, size):
        order += [*range(lane, lane + size), *range(TILE + lane, TILE + lane + size)]
    return [
        builder.shuffle_vector(left, right, ir.Constant(wide(I32, TILE), half))
        for half in (order[:TILE], order[TILE:])
    ]
