"""The compressed-tensors layout of codes: eight nibbles in an int32 word, lowest bits first."""

import torch
from torch import Tensor

from compression.weights.codes import Codes

_SHIFTS = tuple(range(0, 32, 4))


def pack_rows(nibbles: Tensor) -> Tensor:
    """Pack 0…15 values ``[rows, columns]`` along the columns into int32 ``[rows, ⌈columns/8⌉]``."""
    rows, columns = nibbles.shape
    padded = torch.nn.functional.pad(nibbles.to(torch.int32), (0, -columns % 8))
    words = padded.reshape(rows, -1, 8)
    packed = torch.zeros(words.shape[:2], dtype=torch.int32)
    for position, shift in enumerate(_SHIFTS):
        packed |= words[:, :, position] << shift
    return packed


def unpack_rows(packed: Tensor, columns: int) -> Tensor:
    """Undo :func:`pack_rows`; returns int8 0…15 ``[rows, columns]``."""
    nibbles = torch.stack([(packed >> shift) & 0xF for shift in _SHIFTS], dim=-1)
    return nibbles.reshape(packed.shape[0], -1)[:, :columns].to(torch.int8)


def pack_int4(name: str, codes: Codes, *, symmetric: bool) -> dict[str, Tensor]:
    """Return the artifact's tensors for an int4 weight called ``name``."""
    tensors = {f"{name}_packed": pack_rows(codes.codes), f"{name}_scale": codes.scales}
    if codes.zeros is not None and not symmetric:
        tensors[f"{name}_zero_point"] = pack_rows(codes.zeros.T).T.contiguous()
    tensors[f"{name}_shape"] = torch.tensor(codes.codes.shape, dtype=torch.int64)
    return tensors


def unpack_int4(packed: Tensor, scales: Tensor, zero_point: Tensor | None, columns: int) -> Codes:
    """Read an int4 weight back; a missing ``zero_point`` means symmetric (zero at 8)."""
    rows = packed.shape[0]
    if zero_point is None:
        zeros = torch.full(scales.shape, 8, dtype=torch.int8)
    else:
        zeros = unpack_rows(zero_point.T, rows).T.contiguous()
    return Codes(codes=unpack_rows(packed, columns), scales=scales, zeros=zeros)


def pack_int8(name: str, codes: Codes) -> dict[str, Tensor]:
    """Return the artifact's tensors for an int8 weight called ``name``."""
    return {name: codes.codes, f"{name}_scale": codes.scales}
