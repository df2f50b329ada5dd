"""Packed layers: every kernel path equals the dequantized product."""

import pytest
import torch

from compression import crossover
from compression.crossover import READING, as_at_any_load, measure_speed, reading_from, tune
from compression.kernels.matrix_unit import permission
from compression.loading import Weight, stack_rows
from compression.packed import (
    Bf16Linear,
    Int4Linear,
    Int5Linear,
    Int8DynamicLinear,
    Int8Linear,
    Nf4Linear,
    PackedLinear,
    make_grouped_linear,
)
from compression.packed.linear import NEVER
from compression.schemes import Grouped, Int4, Int5, Int8, Unquantized
from compression.weights.nf4 import quantize_nf4
from compression.weights.quantizer import quantize
from tests.processor import ROUNDS_SUMS

# Rows and columns on, off and far from the kernels' blocks of 16, 32 and 64.
SHAPES = [(64, 64), (100, 96), (16, 32), (7, 160), (192, 32), (1, 64)]
WIDE = [(64, 128), (33, 256), (100, 384)]
RAGGED = [(16, 8), (20, 17), (5, 100), (33, 31)]
COUNTS = [1, 2, 3, 5, 17, 40]

FORMATS: dict[str, Grouped | Int8 | Unquantized] = {
    "bf16": Unquantized(),
    "int8": Int8(),
    **{
        scheme.label: scheme
        for kind in (Int4, Int5)
        for size in (32, 64, 128)
        for symmetric in (False, True)
        for scheme in [kind(group_size=size, symmetric=symmetric, method="rtn")]
    },
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return reproducible normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the Frobenius error of ``result`` relative to ``expected``."""
    return float((result.to(torch.float32) - expected).norm() / expected.norm())


def make(name: str, rows: int, columns: int) -> tuple[PackedLinear, torch.Tensor]:
    """Return a layer and the dense float32 weight that it stands for."""
    weight = random(rows, columns, seed=rows)
    bias = random(rows, seed=columns).to(torch.bfloat16)
    if name == "nf4":
        nf4 = quantize_nf4(weight)
        return Nf4Linear(nf4, bias), nf4.dequantize()
    scheme = FORMATS[name]
    if isinstance(scheme, Unquantized):
        return Bf16Linear(weight, bias), weight.to(torch.bfloat16).to(torch.float32)
    codes = quantize(weight, scheme)
    layer = (
        Int8Linear(codes, bias) if isinstance(scheme, Int8) else make_grouped_linear(codes, bias)
    )
    return layer, codes.dequantize()


CASES = [
    *[(name, *shape) for name in FORMATS for shape in WIDE],
    *[
        (name, *shape)
        for name in FORMATS
        if "128" not in name and "64" not in name
        for shape in SHAPES
    ],
    *[(name, *shape) for name in ("int8", "bf16") for shape in RAGGED],
    *[("nf4", *shape) for shape in [(64, 64), (1, 64), (33, 256), (100, 384)]],
]


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_both_paths_equal_the_dequantized_product(
    name: str, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """Few rows and many rows agree with plain matrix algebra, bias included, on any shape."""
    layer, weight = make(name, rows, columns)
    assert layer.bias is not None
    for count in COUNTS:
        x = random(count, columns, seed=count).to(torch.bfloat16).to(dtype)
        expected = x.to(torch.float32) @ weight.T + layer.bias.to(torch.float32)
        for dense_from in (NEVER, 1):
            layer.dense_from = dense_from
            result = layer(x)
            assert result.dtype == dtype
            assert result.shape == (count, rows)
            bound = 0.01 if dtype == torch.bfloat16 or name == "nf4" else 1e-4
            assert relative(result, expected) < bound


@pytest.mark.parametrize(("name", "rows", "columns"), CASES)
def test_unpacked_weight_is_the_one_packed(name: str, rows: int, columns: int) -> None:
    """Reading the packed form back gives the dequantized weight, bit for bit."""
    layer, weight = make(name, rows, columns)
    assert torch.equal(layer.unpack(slice(0, rows), torch.float32), weight)


@pytest.mark.parametrize("name", ["int8", "int5-g32-asym", "int4-g32-asym", "nf4"])
def test_many_blocks_equal_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight unpacked in several blocks of rows gives the product of the whole."""
    layer, _ = make(name, 200, 64)
    layer.dense_from = 1
    x = random(3, 64)
    whole = layer(x)
    monkeypatch.setattr("compression.packed.linear.DENSE_BLOCK_ELEMENTS", 64 * 64)
    blocks: list[slice] = []
    unpack = layer.unpack

    def spy(rows: slice, dtype: torch.dtype) -> torch.Tensor:
        blocks.append(rows)
        return unpack(rows, dtype)

    monkeypatch.setattr(layer, "unpack", spy)
    assert torch.allclose(layer(x), whole, atol=1e-5)
    assert len(blocks) == 4


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
    int5 = Int5Linear(quantize(random(64, 64), Int5(group_size=64)), None)
    int8 = Int8Linear(quantize(random(64, 64), Int8()), None)
    nf4 = Nf4Linear(quantize_nf4(random(64, 64)), None)
    assert [layer.scheme for layer in (int4, symmetric, int5, int8, nf4)] == [
        "int4-g32-asym",
        "int4-g32-sym",
        "int5-g64-asym",
        "int8-rows",
        "nf4-b64",
    ]
    assert int4.weight_bytes == 64 * 64 // 2 + 64 * 2 * 3
    assert int5.weight_bytes == 64 * 64 * 5 // 8 + 64 * 3
    assert int8.weight_bytes == 64 * 64 + 64 * 2
    assert nf4.weight_bytes == 64 * 64 // 2 + 64 * 4


@pytest.mark.parametrize(("rows", "columns"), [*WIDE, (7, 128), (1, 1664)])
@pytest.mark.parametrize("name", FORMATS)
def test_memory_is_what_was_forecast(name: str, rows: int, columns: int) -> None:
    """The scheme tells the bytes of the live tensors before there are any, padding included."""
    layer, _ = make(name, rows, columns)
    forecast = FORMATS[name].memory_bytes(rows, columns, itemsize=2)
    assert layer.weight_bytes == forecast + 2 * rows, "the bias is apart"


def test_codes_of_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="int5-g32-asym on the kernel of int4"):
        Int4Linear(quantize(random(16, 64), Int5()), None)


@pytest.mark.parametrize("other", [Int5(), Int8()])
def test_weights_of_different_formats_are_not_fused(other: Grouped | Int8) -> None:
    """Five bits would be read as four."""
    parts: list[Weight] = [quantize(random(32, 64), each) for each in (Int4(), other)]
    with pytest.raises(ValueError, match="different schemes"):
        stack_rows(parts)


def test_tuning_sets_one_figure_per_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers on one kernel share a crossover, integers have none; results do not depend on it."""
    names = ("nf4", "nf4", "int8", "int4-g32-asym", "int5-g32-asym")
    figures = iter(range(2, 99))
    monkeypatch.setattr(crossover, "_crossover", lambda probe: next(figures))
    layers = [make(name, 64, 64)[0] for name in names]
    layers.append(Int8DynamicLinear(quantize(random(64, 64), Int8()), None))
    x = random(4, 64)
    before = [layer(x) for layer in layers]
    tune(layers)
    integers = crossover.LONG_TEXT if ROUNDS_SUMS and not permission() else NEVER
    assert [layer.dense_from for layer in layers] == [2, 2, *[integers] * 4]
    assert [layer.is_timed for layer in layers] == [True, True, *[False] * 4]
    for layer, expected in zip(layers, before, strict=True):
        assert relative(layer(x), expected) < 0.01


def test_what_was_timed_is_set_aside_for_a_text_that_is_read() -> None:
    """Within the block alone, also where that fails; what no clock has found stays as it is."""
    timed, fixed = make("nf4", 64, 64)[0], make("int8", 64, 64)[0]
    timed.dense_from, timed.is_timed, fixed.dense_from = 7, True, 9
    assert [reading_from(each) for each in (timed, fixed)] == [READING, 9]
    seen: list[int] = []

    def fail() -> None:
        with as_at_any_load([timed, fixed]):
            seen.extend([timed.dense_from, fixed.dense_from])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [READING, 9]
    assert [timed.dense_from, fixed.dense_from] == [7, 9]


@pytest.mark.parametrize("name", ["bf16", "int8", "int4-g64-sym", "int5-g64-asym", "nf4"])
def test_speed_is_of_the_same_kernel_and_shape(name: str) -> None:
    """A measurement names what it timed and leaves the layer as it was."""
    layer, weight = make(name, 96, 128)
    before = layer.unpack(slice(0, 96), torch.float32).clone()
    speed = measure_speed(layer)
    assert (speed.scheme, speed.shape, speed.kernel) == (layer.scheme, (96, 128), layer.kernel)
    assert 0 < speed.microseconds < 1e6
    assert 0 < speed.bf16_microseconds < 1e6
    assert torch.equal(layer.unpack(slice(0, 96), torch.float32), before)
    assert weight.shape == speed.shape


def test_speed_follows_the_size() -> None:
    """A weight of 8,000 times the size takes longer on any machine, so something real was timed."""
    small = measure_speed(make("int8", 16, 64)[0])
    large = measure_speed(make("int8", 64, 2048)[0], rows=4096)
    assert large.shape == (4096, 2048)
    assert large.microseconds > small.microseconds
    assert large.bf16_microseconds > small.bf16_microseconds
