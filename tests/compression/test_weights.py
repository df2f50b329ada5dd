"""Quantizers: codes within their grid, errors within their bounds."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from compression.schemes import Grouped, Int4, Int5, Int8
from compression.weights.codes import INT8, Grid, fit_range, grouped_grid, round_to
from compression.weights.mse import SHRINKS
from compression.weights.quantizer import quantize
from compression.weights.search import best_range


def weight(rows: int = 24, columns: int = 128, *, seed: int = 0) -> torch.Tensor:
    """Return a weight with heavy tails, as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).pow(3) * 0.02


def test_int8_rounds_within_half_a_step() -> None:
    """Each value lies within half a scale of the one it became, up to bf16's rounding of it."""
    exact = weight()
    codes = quantize(exact, Int8())
    step = codes.scales.to(torch.float32)
    assert codes.scales.shape == (24, 1)
    assert int(codes.codes.abs().max()) == 127
    clipped = (exact.abs().amax(1, keepdim=True) - 127 * step).clamp_min(0)
    assert bool(((codes.dequantize() - exact).abs() <= step / 2 + clipped + 1e-7).all())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("kind", "most"), [(Int4, 15), (Int5, 31)])
def test_codes_fit_their_bits(
    kind: type[Int4] | type[Int5], most: int, group_size: Literal[32, 64, 128], symmetric: bool
) -> None:
    """Codes and zero points stay in 0…15 or 0…31 and use them; a symmetric zero is midway."""
    codes = quantize(weight(), kind(group_size=group_size, symmetric=symmetric))
    assert codes.zeros is not None
    for values in (codes.codes, codes.zeros):
        assert int(values.min()) >= 0
        assert int(values.max()) <= most
    assert int(codes.codes.max()) == most
    assert codes.scales.shape == (24, 128 // group_size)
    assert bool((codes.zeros == (most + 1) // 2).all()) is symmetric


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_a_fifth_bit_halves_the_error(method: Literal["rtn", "mse"], symmetric: bool) -> None:
    exact = weight(seed=5)
    four, five = (
        quantize(exact, kind(symmetric=symmetric, method=method)).dequantize() - exact
        for kind in (Int4, Int5)
    )
    assert 0.4 < float(five.norm() / four.norm()) < 0.6


@pytest.mark.parametrize(
    ("scheme", "most"),
    [
        (Int4(), 0.97),
        (Int4(symmetric=True), 0.97),
        (Int4(group_size=128), 0.97),
        (Int5(), 0.995),
        (Int5(group_size=128), 0.98),
    ],
)
def test_searched_clip_beats_the_full_range(scheme: Grouped, most: float) -> None:
    """The squared error with a searched clip is below plain rounding's, row by row."""
    exact = weight(seed=3)
    plain = quantize(exact, scheme.model_copy(update={"method": "rtn"})).dequantize()
    searched = quantize(exact, scheme.model_copy(update={"method": "mse"})).dequantize()
    plain_error = (plain - exact).square().sum(1)
    searched_error = (searched - exact).square().sum(1)
    assert bool((searched_error <= plain_error + 1e-9).all())
    assert float(searched_error.sum()) < most * float(plain_error.sum())


def test_int4_represents_a_grid_exactly() -> None:
    """A weight that already lies on a 4-bit grid comes back unchanged."""
    generator = torch.Generator().manual_seed(1)
    grid = torch.randint(0, 16, (8, 64), generator=generator)
    grid[:, ::32], grid[:, 1::32] = 0, 15
    exact = (grid - 7).to(torch.float32) * 0.25
    assert torch.equal(quantize(exact, Int4(method="rtn")).dequantize(), exact)


@pytest.mark.parametrize("scheme", [Int8(), Int4(), Int4(symmetric=True)])
@pytest.mark.parametrize("fill", [0.0, 1.5, -1.5])
def test_constant_rows_survive(scheme: Int4 | Int8, fill: float) -> None:
    """All-zero, all-positive and all-negative rows give finite values close to their own."""
    exact = torch.full((4, 64), fill)
    restored = quantize(exact, scheme).dequantize()
    assert torch.allclose(restored, exact, rtol=0.01)


def test_blocks_do_not_show() -> None:
    """A weight larger than one working block equals its parts quantized apart."""
    exact = weight(rows=3000, columns=128)
    whole = quantize(exact, Int4())
    part = quantize(exact[2900:], Int4())
    assert torch.equal(whole.codes[2900:], part.codes)
    assert torch.equal(whole.scales[2900:], part.scales)


@pytest.mark.parametrize(
    "grid",
    [grouped_grid(Int4()), grouped_grid(Int4(symmetric=True)), grouped_grid(Int5()), INT8],
)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_search_finds_what_one_range_after_another_finds(grid: Grid, is_weighted: bool) -> None:
    """Ranges are bit for bit those of one fraction at a time; the first of equals wins."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(40, 6, 32, generator=generator) ** 3
    values[0] = 0  # every fraction errs alike
    values[1, 0] = 1e38  # a scale that bf16 still holds, and squares that overflow
    values[1, 1, ::2], values[1, 1, 1::2] = 3.4e38, -3.4e38  # a range that overflows
    importance = torch.rand(6, 32, generator=generator) if is_weighted else None
    scale, zero = best_range(values, grid, shrinks=SHRINKS, importance=importance)
    expected_scale, expected_zero = one_after_another(values, grid, importance)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(zero, expected_zero)


def one_after_another(
    values: Tensor, grid: Grid, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Search ranges as they are defined: by fitting, rounding and comparing one at a time."""
    low = values.amin(-1, keepdim=True).clamp_max(0)
    high = values.amax(-1, keepdim=True).clamp_min(0)
    best_scale, best_zero = fit_range(low, high, grid)
    best_error = torch.full_like(best_scale, float("inf"))
    for shrink in SHRINKS:
        scale, zero = fit_range(low * shrink, high * shrink, grid)
        errors = ((round_to(values, scale, zero, grid) - zero) * scale - values).square()
        error = (errors if importance is None else errors * importance).sum(-1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero
