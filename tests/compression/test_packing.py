"""The artifact's int4 layout, against the library that defined it."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from compression.packing import pack_int4, pack_rows, unpack_int4, unpack_rows
from compression.schemes import Int4
from compression.weights.quantizer import quantize


@pytest.mark.parametrize("shape", [(16, 64), (5, 32), (3, 12)])
def test_words_equal_compressed_tensors(shape: tuple[int, int]) -> None:
    """Eight nibbles land in a word just as compressed-tensors packs them."""
    nibbles = torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(0))
    expected = pack_to_int32((nibbles - 8).to(torch.int8), num_bits=4)
    assert torch.equal(pack_rows(nibbles), expected)
    assert torch.equal(unpack_rows(pack_rows(nibbles), shape[1]), nibbles.to(torch.int8))


@pytest.mark.parametrize("shape", [(1, 8), (1, 3), (8, 1), (9, 4), (16, 2)])
def test_transposed_words_come_back(shape: tuple[int, int]) -> None:
    """Values that lie in memory by columns, as zero points do, are packed by rows all the same."""
    generator = torch.Generator().manual_seed(0)
    by_columns = torch.randint(0, 16, shape[::-1], dtype=torch.int8, generator=generator).T
    nibbles = torch.tensor(by_columns.tolist(), dtype=torch.int8)
    assert torch.equal(pack_rows(by_columns), pack_rows(nibbles))
    packed = pack_rows(by_columns).T.contiguous().T
    assert torch.equal(unpack_rows(packed, shape[1]), by_columns)


@pytest.mark.parametrize("rows", [16, 13])
@pytest.mark.parametrize("symmetric", [False, True])
def test_round_trip(rows: int, symmetric: bool) -> None:
    """Codes, scales and zero points come back as they went in."""
    exact = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2))
    codes = quantize(exact, Int4(symmetric=symmetric))
    tensors = pack_int4("w", codes, symmetric=symmetric)
    assert ("w_zero_point" in tensors) is not symmetric
    back = unpack_int4(tensors["w_packed"], tensors["w_scale"], tensors.get("w_zero_point"), 64)
    assert torch.equal(back.dequantize(), codes.dequantize())
    assert tensors["w_shape"].tolist() == [rows, 64]
