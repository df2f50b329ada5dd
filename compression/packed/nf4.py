"""NormalFloat4 weights: bitsandbytes' fused kernel where it runs, else unpacked in the cache."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed.bitsandbytes_cpu import (
    FUSED_ROWS,
    dequantize,
    fused_product,
    has_fused_product,
)
from compression.packed.linear import PackedLinear
from compression.schemes import NF4_BLOCK
from compression.weights.nf4 import Nf4Codes, require_whole_rows

_CACHED_ELEMENTS = 128 * 1024
"""Unpacked f32 values that are still in a cache when they are multiplied."""


def make_nf4_linear(codes: Nf4Codes, bias: Tensor | None) -> PackedLinear:
    """Return the layer for this processor.

    Raises:
        ArtifactError: blocks of the weight reach across its rows, or bitsandbytes is missing.
    """
    return Nf4FusedLinear(codes, bias) if has_fused_product() else Nf4Linear(codes, bias)


class Nf4Linear(PackedLinear):
    """nf4 as it is stored, unpacked a few rows at a time by bitsandbytes.

    For processors without AVX512-BF16: what it costs is the unpacking, however few the inputs are.
    """

    kernel = "nf4-unpack"
    numerics = "W4A16"

    def __init__(self, codes: Nf4Codes, bias: Tensor | None) -> None:
        require_whole_rows(codes.shape)
        super().__init__(codes.label, *codes.shape, bias)
        self.packed: Tensor
        self.absmax: Tensor
        self.register_buffer("packed", codes.packed.reshape(self.rows, -1).contiguous())
        self.register_buffer("absmax", codes.absmax.reshape(self.rows, -1).contiguous())

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        packed = self.packed[rows]
        out = torch.empty(packed.shape[0], self.columns)
        return dequantize(packed, self.absmax[rows], out).to(dtype)

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        return type(self)(_arbitrary_codes(rows, self.columns), None)

    def _few_rows(self, x: Tensor) -> Tensor:
        return self._dense_product(x.to(torch.float32), _CACHED_ELEMENTS)


class Nf4FusedLinear(PackedLinear):
    """nf4 on bitsandbytes' AVX512-BF16 kernel, in that kernel's layout.

    The kernel reads absmax in bf16, so this layer holds it so: its products differ from those of
    the f32 absmax by up to one part in 256 a block. Rows are padded to whole blocks of 32.
    """

    kernel = "nf4-bitsandbytes"
    numerics = "W4A16"

    def __init__(self, codes: Nf4Codes, bias: Tensor | None) -> None:
        require_whole_rows(codes.shape)
        super().__init__(codes.label, *codes.shape, bias)
        padding = (0, 0, 0, -self.rows % FUSED_ROWS)
        packed = functional.pad(codes.packed.view(self.rows, -1), padding)
        absmax = functional.pad(codes.absmax.view(self.rows, -1), padding)
        self.packed: Tensor
        self.absmax: Tensor
        self.register_buffer("packed", interleave_rows(packed).contiguous())
        self.register_buffer("absmax", absmax.t().to(torch.bfloat16).contiguous())

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``.

        ``rows`` must begin at a whole block of 32 rows.
        """
        stop = min(rows.stop, self.rows)
        blocks = self.packed[rows.start // FUSED_ROWS : -(-stop // FUSED_ROWS)]
        packed = separate_rows(blocks)
        last = rows.start + packed.shape[0]
        absmax = self.absmax[:, rows.start : last].t().to(torch.float32)
        out = torch.empty(packed.shape[0], self.columns)
        return dequantize(packed, absmax, out)[: stop - rows.start].to(dtype)

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        return type(self)(_arbitrary_codes(rows, self.columns), None)

    def _few_rows(self, x: Tensor) -> Tensor:
        return fused_product(x, self.packed, self.absmax)[:, : self.rows]


def interleave_rows(packed: Tensor) -> Tensor:
    """Put codes in the fused kernel's layout.

    Args:
        packed: uint8 ``[rows, columns / 2]``, the even column in the high half; rows a multiple
            of 32.

    Returns:
        uint8 ``[rows / 32, columns / 2, 32]``: for each pair of columns, rows 0…15 of a block in
        the low halves and rows 16…31 in the high halves, each row's two columns side by side.
    """
    blocks = packed.reshape(-1, FUSED_ROWS, packed.shape[1]).transpose(1, 2)
    pairs = torch.stack([blocks >> 4, blocks & 0xF], dim=-1).flatten(2)
    return pairs[..., :FUSED_ROWS] | (pairs[..., FUSED_ROWS:] << 4)


def separate_rows(interleaved: Tensor) -> Tensor:
    """Undo :func:`interleave_rows`."""
    codes = torch.cat([interleaved & 0xF, interleaved >> 4], dim=-1)
    rows = (codes[..., 0::2] << 4) | codes[..., 1::2]
    return rows.transpose(1, 2).reshape(-1, interleaved.shape[1])


def _arbitrary_codes(rows: int, columns: int) -> Nf4Codes:
    count = rows * columns
    return Nf4Codes(
        packed=torch.randint(0, 256, (count // 2,), dtype=torch.uint8),
        absmax=torch.full((count // NF4_BLOCK,), 0.01),
        shape=(rows, columns),
    )
