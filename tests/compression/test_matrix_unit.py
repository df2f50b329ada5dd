"""Products of many rows of inputs on the processor's matrix unit: the same as in vectors."""

import math
from collections.abc import Callable

import pytest
import torch

from compression.crossover import tune
from compression.kernels import fields, matrix_unit
from compression.kernels.matrix_operations import UNIT_FROM
from compression.packed import Bf16Linear, CompiledLinear, Int8Linear, make_grouped_linear
from compression.packed import compiled as compiled_layers
from compression.packed.int8_dynamic import Int8DynamicLinear
from compression.packed.linear import NEVER
from compression.weights.codes import Codes

needs_unit = pytest.mark.skipif(
    not matrix_unit.permission(), reason="this processor has no matrix unit, or it is not granted"
)
Make = Callable[[int, int, torch.Tensor | None], CompiledLinear]


def bf16(rows: int, columns: int, bias: torch.Tensor | None) -> CompiledLinear:
    return Bf16Linear(torch.randn(rows, columns).to(torch.bfloat16), bias)


def int8(rows: int, columns: int, bias: torch.Tensor | None) -> CompiledLinear:
    return Int8Linear(_int8_codes(rows, columns), bias)


def int8_dynamic(rows: int, columns: int, bias: torch.Tensor | None) -> CompiledLinear:
    return Int8DynamicLinear(_int8_codes(rows, columns), bias)


def int4(rows: int, columns: int, bias: torch.Tensor | None) -> CompiledLinear:
    return make_grouped_linear(_grouped_codes(rows, columns, 4), bias)


def int5(rows: int, columns: int, bias: torch.Tensor | None) -> CompiledLinear:
    return make_grouped_linear(_grouped_codes(rows, columns, 5), bias)


def _grouped_codes(rows: int, columns: int, bits: int) -> Codes:
    groups = columns // 32
    return Codes(
        codes=torch.randint(0, 1 << bits, (rows, columns), dtype=torch.int8),
        scales=(0.02 * torch.rand(rows, groups)).to(torch.bfloat16),
        zeros=torch.randint(0, 1 << bits, (rows, groups), dtype=torch.int8),
        bits=bits,
    )


def _int8_codes(rows: int, columns: int) -> Codes:
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    return Codes(codes=codes, scales=torch.rand(rows, 1).to(torch.bfloat16), zeros=None, bits=8)


def in_vectors(layer: CompiledLinear, x: torch.Tensor) -> torch.Tensor:
    """Return products without the unit."""
    product = layer.product(x)
    product.program[0, fields.QUADS] = product.program[1, fields.ON_UNIT] = 0
    return product.run()


def dense(layer: CompiledLinear, x: torch.Tensor) -> torch.Tensor:
    """Return products with the weight as it is held, in float64."""
    return x.double() @ layer.unpack(slice(0, layer.rows), torch.float64).T


def far(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result - expected).norm() / expected.norm())


MAKE = pytest.mark.parametrize("make", [bf16, int8, int8_dynamic, int5, int4])


@needs_unit
@MAKE
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (48, 1536), (272, 96), (16, 32)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_sums_are_those_of_vectors(make: Make, rows: int, columns: int, has_bias: bool) -> None:
    """Whole tiles and parts of them, of weights and of inputs; columns that need padding.

    Of integers they are the same bit for bit.
    """
    torch.manual_seed(rows)
    layer = make(rows, columns, torch.randn(rows).to(torch.bfloat16) if has_bias else None)
    assert layer.on_unit
    for count in (*range(1, 13), 15, 16, 17, 40):
        x = torch.randn(count, columns)
        result, expected = layer.product(x).run(), in_vectors(layer, x)
        if make is bf16:
            assert far(result, expected) < 2e-5
        else:
            assert torch.equal(result, expected)


@needs_unit
@pytest.mark.parametrize("columns", [8272, 28672])
def test_the_largest_sums_fit(columns: int) -> None:
    """All codes and inputs as large as they can be, whose low bytes are the least ones, too."""
    codes = torch.full((16, columns), 127, dtype=torch.int8)
    scales = torch.ones(16, 1).bfloat16()
    layer = Int8Linear(Codes(codes=codes, scales=scales, zeros=None, bits=8), None)
    for code in (32639, 32384 - 128):
        x = torch.full((16, columns), float(code))
        x[:, 0] = 32639.0
        expected = 127.0 * x.double().sum(1, keepdim=True).expand(16, 16)
        assert layer.on_unit
        assert far(layer.product(x).run().double(), expected) < 1e-6


@needs_unit
@pytest.mark.parametrize("bits", [5, 4])
@pytest.mark.parametrize("group", [32, 128])
def test_the_largest_sums_of_groups_are_those_of_vectors(bits: int, group: int) -> None:
    """All codes as large as they can be, inputs with the largest and the least bytes."""
    most = (1 << bits) - 1
    codes = Codes(
        codes=torch.full((16, 256), most, dtype=torch.int8),
        scales=torch.ones(16, 256 // group).bfloat16(),
        zeros=torch.full((16, 256 // group), 1, dtype=torch.int8),
        bits=bits,
    )
    layer = make_grouped_linear(codes, None)
    for code in (32639, -32639, 32384 - 128, -128):
        x = torch.full((16, 256), float(code))
        x[:, 0] = 32639.0
        result = layer.product(x).run()
        expected = (most - 1.0) * x.double().sum(1, keepdim=True).expand(16, 16)
        assert layer.on_unit
        assert torch.equal(result, in_vectors(layer, x))
        assert far(result.double(), expected) < 1e-6


@needs_unit
@MAKE
def test_outputs_of_no_row_depend_on_other_rows(make: Make) -> None:
    """One input is an infinity: its outputs are no numbers, its neighbours' are as without it."""
    layer = make(32, 64, None)
    x = torch.randn(20, 64)
    before = layer.product(x).run().clone()
    x[3, 5] = math.inf
    after = layer.product(x).run()
    assert not after[3].isfinite().any()
    others = [row for row in range(20) if row != 3]
    assert torch.equal(after[others], before[others])


@needs_unit
@pytest.mark.parametrize("make", [int5, int4])
def test_groups_may_end_within_a_tile(make: Make) -> None:
    layer = make(40, 64, torch.randn(40).to(torch.bfloat16))
    x = torch.randn(UNIT_FROM[layer.operand.format], 64)
    assert far(layer.product(x).run(), in_vectors(layer, x)) < 1e-6


@pytest.mark.parametrize("make", [bf16, int8])
def test_rows_that_fill_no_tile_stay_with_vectors(make: Make) -> None:
    layer = make(40, 64, None)
    x = torch.randn(9, 64)
    assert not layer.on_unit
    assert far(layer.product(x).run().double(), dense(layer, x)) < 1e-4


@MAKE
def test_without_leave_vectors_do_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that does not grant the unit's registers: the sums are right, in vectors."""
    monkeypatch.setattr(compiled_layers, "permission", lambda: False)
    layer = make(32, 64, None)
    x = torch.randn(20, 64)
    assert not layer.on_unit
    bound = 2e-2 if make is int8_dynamic else 1e-4
    assert far(layer.product(x).run().double(), dense(layer, x)) < bound


@needs_unit
@MAKE
def test_no_number_of_rows_is_multiplied_densely(make: Make) -> None:
    layer = make(64, 64, None)
    tune([layer])
    assert layer.dense_from == NEVER
