"""Packed layers: every kernel path equals the dequantized product."""

import pytest
import torch

from compression.crossover import NEVER, tune
from compression.packed import Bf16Linear, Int4Linear, Int8Linear, PackedLinear
from compression.schemes import Int4, Int8
from compression.weights.quantizer import quantize

# Rows and columns on, off and far from the kernels' blocks of 16, 32 and 64.
SHAPES = [(64, 64), (100, 96), (16, 32), (7, 160), (192, 32), (1, 64)]
RAGGED = [(16, 8), (20, 17), (5, 100), (33, 31)]
ROWS = [1, 2, 3, 5, 17]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return reproducible normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the Frobenius error of ``result`` relative to ``expected``."""
    return float((result.to(torch.float32) - expected).norm() / expected.norm())


def make(scheme: str, rows: int, columns: int) -> tuple[PackedLinear, torch.Tensor]:
    """Return a layer and the dense float32 weight that it stands for."""
    weight = random(rows, columns, seed=rows)
    bias = random(rows, seed=columns).to(torch.bfloat16)
    if scheme == "bf16":
        return Bf16Linear(weight, bias), weight.to(torch.bfloat16).to(torch.float32)
    codes = quantize(weight, Int8() if scheme == "int8" else Int4())
    layer = Int8Linear(codes, bias) if scheme == "int8" else Int4Linear(codes, bias)
    return layer, codes.dequantize()


CASES = [
    *[("int4", *shape) for shape in SHAPES],
    *[(scheme, *shape) for scheme in ("int8", "bf16") for shape in SHAPES + RAGGED],
]


@pytest.mark.parametrize(("scheme", "rows", "columns"), CASES)
@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_paths_equal_the_dequantized_product(
    scheme: str, rows: int, columns: int, count: int, dtype: torch.dtype
) -> None:
    """Few rows and many rows agree with plain matrix algebra, bias included, on any shape."""
    layer, weight = make(scheme, rows, columns)
    x = random(count, columns, seed=count).to(torch.bfloat16).to(dtype)
    assert layer.bias is not None
    expected = x.to(torch.float32) @ weight.T + layer.bias.to(torch.float32)
    for dense_from in (NEVER, 1):
        layer.dense_from = dense_from
        result = layer(x)
        assert result.dtype == dtype
        assert result.shape == (count, rows)
        assert relative(result, expected) < 0.01


@pytest.mark.parametrize(("scheme", "rows", "columns"), CASES)
def test_unpacked_weight_is_the_one_packed(scheme: str, rows: int, columns: int) -> None:
    """Reading the packed form back gives the dequantized weight, up to bf16 zero offsets."""
    layer, weight = make(scheme, rows, columns)
    unpacked = layer.unpack(slice(0, rows), torch.float32)
    assert relative(unpacked, weight) < 1e-3


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_many_blocks_equal_one(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight unpacked in several blocks of rows gives the product of the whole."""
    layer, _ = make(scheme, 200, 64)
    layer.dense_from = 1
    x = random(3, 64)
    whole = layer(x)
    monkeypatch.setattr("compression.packed._DENSE_BLOCK_ELEMENTS", 64 * 64)
    assert torch.allclose(layer(x), whole, atol=1e-5)


def test_rows_of_an_embedding() -> None:
    """A lookup gives the dequantized rows, in the dtype asked for."""
    codes = quantize(random(50, 40), Int8())
    table = Int8Linear(codes, None)
    ids = torch.tensor([3, 49, 3])
    assert torch.equal(table.embed(ids, torch.float32), codes.dequantize()[ids])
    assert table.embed(ids, torch.bfloat16).dtype == torch.bfloat16


def test_scheme_and_bytes_come_from_the_live_tensors() -> None:
    """The label says what is held, and the bytes are those of the buffers."""
    int4 = Int4Linear(quantize(random(64, 64), Int4()), None)
    symmetric = Int4Linear(quantize(random(64, 64), Int4(symmetric=True)), None)
    int8 = Int8Linear(quantize(random(64, 64), Int8()), None)
    assert (int4.scheme, symmetric.scheme, int8.scheme) == (
        "int4-g32-asym",
        "int4-g32-sym",
        "int8-rows",
    )
    assert int4.weight_bytes == 64 * 64 // 2 + 64 * 2 * 4
    assert int8.weight_bytes == 64 * 64 + 64 * 2


def test_tuning_sets_one_figure_per_kernel() -> None:
    """Layers on one kernel share a crossover; results do not depend on it."""
    layers = [make(scheme, 64, 64)[0] for scheme in ("int4", "int4", "int8")]
    x = random(4, 64)
    before = [layer(x) for layer in layers]
    tune(layers)
    assert layers[0].dense_from == layers[1].dense_from
    for layer, expected in zip(layers, before, strict=True):
        assert relative(layer(x), expected) < 0.01
