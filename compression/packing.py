"""The layouts in which artifacts hold codes: compressed-tensors', and bitsandbytes' for nf4.

compressed-tensors strings codes of few bits together, lowest bits first, and cuts the string into
int32 words: eight codes of four bits fill one, 32 codes of five bits fill five.
"""

import json

import torch
from torch import Tensor
from torch.nn import functional

from compression.nf4_state import nf4_state
from compression.schemes import NF4_BLOCK
from compression.weights.codes import Codes
from compression.weights.nf4 import NF4_LEVELS, Nf4Codes

_CODES = 8
"""As many codes as bits fill whole bytes: they are shifted together as one number."""
_WORD_BITS = 32


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of so many bits ``[rows, columns]`` into int32 ``[rows, ⌈columns · bits / 32⌉]``.

    The bits of a row that fill no word are 0.
    """
    rows, columns = codes.shape
    padded = functional.pad(codes, (0, -columns % _CODES)).view(rows, -1, _CODES)
    together = torch.zeros(padded.shape[:2], dtype=torch.int64)
    for place in range(_CODES):
        together |= padded[:, :, place].to(torch.int64) << place * bits
    # Flat, because a side of one element may have any stride, which a view of bytes refuses.
    held = together.flatten().view(torch.uint8).view(rows, -1, 8)[:, :, :bits].flatten(1)
    words = -(-columns * bits // _WORD_BITS)
    held = functional.pad(held, (0, -held.shape[1] % 4))[:, : 4 * words]
    return held.flatten().view(torch.int32).view(rows, words)


def unpack_rows(packed: Tensor, columns: int, bits: int) -> Tensor:
    """Undo :func:`pack_rows`; returns int8 ``[rows, columns]``, no code negative."""
    rows = packed.shape[0]
    held = packed.flatten().view(torch.uint8).view(rows, -1)
    eights = -(-columns // _CODES)
    held = functional.pad(held, (0, eights * bits - held.shape[1])).view(rows, eights, bits)
    together = functional.pad(held, (0, 8 - bits)).flatten().view(torch.int64).view(rows, eights)
    codes = torch.empty(rows, eights, _CODES, dtype=torch.int8)
    for place in range(_CODES):
        codes[:, :, place] = (together >> place * bits) & ((1 << bits) - 1)
    return codes.view(rows, -1)[:, :columns].contiguous()


def pack_grouped(name: str, codes: Codes, *, symmetric: bool) -> dict[str, Tensor]:
    """Return the artifact's tensors for a weight in groups, called ``name``."""
    packed = pack_rows(codes.codes, codes.bits)
    tensors = {f"{name}_packed": packed, f"{name}_scale": codes.scales}
    if codes.zeros is not None and not symmetric:
        tensors[f"{name}_zero_point"] = pack_rows(codes.zeros.T, codes.bits).T.contiguous()
    tensors[f"{name}_shape"] = torch.tensor(codes.codes.shape, dtype=torch.int64)
    return tensors


def unpack_grouped(
    packed: Tensor, scales: Tensor, zero_point: Tensor | None, columns: int
) -> Codes:
    """Read a weight in groups back; a missing ``zero_point`` means symmetric (zero midway).

    Columns fill whole words of 32 codes, as groups do, so the words of a row tell a code's bits.

    Raises:
        ValueError: words of a row do not hold so many columns of codes of 4 or 5 bits.
    """
    rows, bits = packed.shape[0], packed.shape[1] * _WORD_BITS // columns
    if bits not in {4, 5} or packed.shape[1] * _WORD_BITS != columns * bits:
        raise ValueError(f"{packed.shape[1]} words for {columns} codes of 4 or 5 bits")
    if zero_point is None:
        zeros = torch.full(scales.shape, 1 << (bits - 1), dtype=torch.int8)
    else:
        zeros = unpack_rows(zero_point.T, rows, bits).T.contiguous()
    return Codes(codes=unpack_rows(packed, columns, bits), scales=scales, zeros=zeros, bits=bits)


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
