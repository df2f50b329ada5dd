"""The artifact's layout of few bits, against the library that defined it."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

from compression.packing import pack_grouped, pack_rows, unpack_grouped, unpack_rows
from compression.schemes import Int4, Int5
from compression.weights.quantizer import quantize

BITS = pytest.mark.parametrize("bits", [4, 5])


@BITS
@pytest.mark.parametrize("shape", [(16, 64), (5, 32), (3, 12), (2, 576), (1, 1)])
def test_words_equal_compressed_tensors(shape: tuple[int, int], bits: int) -> None:
    """Codes lie in words just as compressed-tensors packs them."""
    codes = torch.randint(0, 1 << bits, shape, generator=torch.Generator().manual_seed(0))
    expected = pack_to_int32((codes - (1 << bits - 1)).to(torch.int8), num_bits=bits)
    assert torch.equal(pack_rows(codes, bits), expected)
    assert torch.equal(unpack_rows(pack_rows(codes, bits), shape[1], bits), codes.to(torch.int8))


@BITS
@pytest.mark.parametrize("shape", [(1, 8), (1, 3), (8, 1), (9, 4), (16, 2), (40, 7)])
def test_transposed_words_come_back(shape: tuple[int, int], bits: int) -> None:
    """Values that lie in memory by columns, as zero points do, are packed by rows all the same."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 1 << bits, shape[::-1], dtype=torch.int8, generator=generator)
    by_columns = drawn.T
    codes = torch.tensor(by_columns.tolist(), dtype=torch.int8)
    assert torch.equal(pack_rows(by_columns, bits), pack_rows(codes, bits))
    packed = pack_rows(by_columns, bits).T.contiguous().T
    assert torch.equal(unpack_rows(packed, shape[1], bits), by_columns)


@pytest.mark.parametrize("rows", [16, 13])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", [Int4, Int5])
def test_round_trip(rows: int, symmetric: bool, kind: type[Int4] | type[Int5]) -> None:
    """Codes, scales and zero points come back as they went in."""
    exact = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2))
    codes = quantize(exact, kind(symmetric=symmetric))
    tensors = pack_grouped("w", codes, symmetric=symmetric)
    assert ("w_zero_point" in tensors) is not symmetric
    zeros = tensors.get("w_zero_point")
    back = unpack_grouped(tensors["w_packed"], tensors["w_scale"], zeros, 64)
    assert back.label == codes.label
    assert torch.equal(back.dequantize(), codes.dequantize())
    assert tensors["w_shape"].tolist() == [rows, 64]


def test_words_of_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="6 words for 64 codes"):
        unpack_grouped(torch.zeros(4, 6, dtype=torch.int32), torch.ones(4, 2), None, 64)
