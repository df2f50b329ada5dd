"""The CPU functions of bitsandbytes' library, without its Python package.

Importing the package imports torch's compiler: seconds and 120 MB in every engine. The two
functions used here are plain C and are called as ``bitsandbytes/backends/cpu/ops.py`` of 0.50 calls
them; each is checked on a known weight before it is trusted.
"""

from ctypes import CDLL, c_int64, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from compression.errors import ArtifactError
from compression.schemes import NF4_BLOCK
from compression.weights.nf4 import NF4_LEVELS

FUSED_ROWS = 32
"""Rows in one block of the fused kernel's layout."""


def dequantize(packed: Tensor, absmax: Tensor, out: Tensor) -> Tensor:
    """Fill ``out``, which must be contiguous, with the values of whole blocks.

    Args:
        packed: uint8 ``[blocks * 32]``, the first code of a byte in its high half.
        absmax: float32 ``[blocks]``.
        out: float32 with ``blocks * 64`` elements.

    Raises:
        ArtifactError: the library is missing or is one that this code does not know.
    """
    return _dequantize(_library(), packed.contiguous(), absmax.contiguous(), out)


def fused_product(x: Tensor, packed: Tensor, absmax: Tensor) -> Tensor:
    """Return ``x Wᵀ`` for a weight in the fused kernel's layout; see :func:`has_fused_product`.

    Args:
        x: bf16 ``[m, columns]``.
        packed: uint8 ``[rows / 32, columns / 2, 32]``.
        absmax: bf16 ``[columns / 64, rows]``.
    """
    return _fused_product(_library(), x.contiguous(), packed.contiguous(), absmax.contiguous())


@cache
def has_fused_product() -> bool:
    """Return whether the fused kernel runs on this processor (AVX512-BF16) and multiplies right."""
    library = _library()
    names = ("has_avx512bf16_cpu", "gemv_4bit_inference_cpu_nf4_bf16")
    if not all(hasattr(library, name) for name in names) or not library.has_avx512bf16_cpu():
        return False
    packed = constant_rows()
    absmax = torch.full((1, 32), 0.5, dtype=torch.bfloat16)
    x = torch.ones(1, NF4_BLOCK, dtype=torch.bfloat16)
    expected = torch.tensor(NF4_LEVELS).repeat(2) * 0.5 * NF4_BLOCK
    result = _fused_product(library, x, packed, absmax)[0].to(torch.float32)
    return torch.allclose(result, expected, rtol=0.02, atol=0.02)


def constant_rows() -> Tensor:
    """Return 32 rows of 64 columns in the fused kernel's layout, row r all of code ``r % 16``.

    Byte j holds the code of row ``j // 2`` in its low half and of row ``16 + j // 2`` in its high
    half, for the column of its pair with the parity of j.
    """
    row = (torch.arange(FUSED_ROWS) // 2 * 0x11).to(torch.uint8)
    return row.expand(1, NF4_BLOCK // 2, FUSED_ROWS).contiguous()


@cache
def _library() -> CDLL:
    spec = find_spec("bitsandbytes")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    found = sorted(folder.glob("libbitsandbytes_cpu.*")) if folder else []
    if not found:
        raise ArtifactError(
            "nf4 needs bitsandbytes with its CPU library: install bitsandbytes 0.50"
        )
    library = CDLL(str(found[0]))
    every_byte = torch.arange(256, dtype=torch.uint8)
    codes = torch.stack([every_byte >> 4, every_byte & 0xF], dim=-1).view(-1).to(torch.int64)
    absmax = torch.arange(1, 9, dtype=torch.float32)
    expected = torch.tensor(NF4_LEVELS)[codes].view(8, NF4_BLOCK) * absmax.unsqueeze(1)
    known = hasattr(library, "cdequantize_blockwise_cpu_nf4_fp32")
    if not known or not torch.equal(
        _dequantize(library, every_byte, absmax, torch.empty_like(expected)), expected
    ):
        raise ArtifactError(
            f"{found[0].name!r} does not read nf4 as bitsandbytes 0.50 does: install that version"
        )
    return library


def _dequantize(library: CDLL, packed: Tensor, absmax: Tensor, out: Tensor) -> Tensor:
    # Rows of one block each: with AVX-512 the function takes the blocks of a row to end with it.
    library.cdequantize_blockwise_cpu_nf4_fp32(
        c_void_p(packed.data_ptr()),
        c_void_p(absmax.data_ptr()),
        c_void_p(out.data_ptr()),
        c_int64(NF4_BLOCK),
        c_int64(absmax.numel()),
        c_int64(NF4_BLOCK),
    )
    return out


def _fused_product(library: CDLL, x: Tensor, packed: Tensor, absmax: Tensor) -> Tensor:
    rows = absmax.shape[1]
    out = torch.empty(x.shape[0], rows, dtype=torch.bfloat16)
    library.gemv_4bit_inference_cpu_nf4_bf16(
        c_int64(x.shape[0]),
        c_int64(rows),
        c_int64(x.shape[1]),
        c_void_p(x.data_ptr()),
        c_void_p(packed.data_ptr()),
        c_void_p(absmax.data_ptr()),
        c_void_p(out.data_ptr()),
        c_int64(NF4_BLOCK),
        c_int64(x.stride(0)),
        c_int64(out.stride(0)),
    )
    return out
