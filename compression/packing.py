"""The layouts in which artifacts hold codes: compressed-tensors', and bitsandbytes' for nf4.

compressed-tensors puts eight nibbles into an int32 word, lowest bits first.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional

from compression.nf4_state import nf4_state
from compression.schemes import NF4_BLOCK
from compression.weights.codes import Codes
from compression.weights.nf4 import NF4_LEVELS, Nf4Codes

_NIBBLES = 8
"""In a word."""


def pack_rows(nibbles: Tensor) -> Tensor:
    """Pack 0…15 values ``[rows, columns]`` along the columns into int32 ``[rows, ⌈columns/8⌉]``."""
    padded = functional.pad(nibbles, (0, -nibbles.shape[1] % _NIBBLES)).to(torch.uint8)
    # Two nibbles a byte, the lower one first: the bytes of a word in the order of its memory.
    packed = padded[:, 0::2] | (padded[:, 1::2] << 4)
    # Flat, because a side of one element may have any stride, which a view of words refuses.
    return packed.flatten().view(torch.int32).view(len(nibbles), -1)


def unpack_rows(packed: Tensor, columns: int) -> Tensor:
    """Undo :func:`pack_rows`; returns int8 0…15 ``[rows, columns]``."""
    halves = packed.flatten().view(torch.uint8)
    nibbles = torch.stack((halves & 0xF, halves >> 4), dim=-1)
    return nibbles.view(packed.shape[0], -1)[:, :columns].contiguous().view(torch.int8)


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


def pack_nf4(name: str, codes: Nf4Codes) -> dict[str, Tensor]:
    """Return the artifact's tensors for an nf4 weight called ``name``."""
    state = nf4_state(codes.shape, NF4_BLOCK)
    return {
        name: codes.packed.unsqueeze(1),
        f"{name}.absmax": codes.absmax,
        f"{name}.quant_map": torch.tensor(NF4_LEVELS, dtype=torch.float32),
        f"{name}.quant_state.bitsandbytes__nf4": torch.frombuffer(
            bytearray(state), dtype=torch.uint8
        ),
    }


def unpack_nf4(packed: Tensor, absmax: Tensor, state: Tensor) -> Nf4Codes:
    """Read an nf4 weight back; ``state`` are the bytes of bitsandbytes' JSON.

    Raises:
        ValueError: the state is not one of :func:`pack_nf4`.
    """
    fields = json.loads(state.numpy().tobytes())
    if fields["blocksize"] != NF4_BLOCK or fields["quant_type"] != "nf4":
        raise ValueError(f"blocks of {fields['blocksize']}, type {fields['quant_type']}")
    rows, columns = fields["shape"]
    return Nf4Codes(packed.reshape(-1), absmax, (rows, columns))
