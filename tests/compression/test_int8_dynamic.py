"""W8A8: inputs rounded as compressed-tensors does, products exact in integers."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from compression.packed import Int8DynamicLinear, Int8Linear
from compression.packed.int8_dynamic import round_tokens
from compression.packed.linear import NEVER
from compression.schemes import Int8
from compression.weights.codes import Codes
from compression.weights.quantizer import quantize

SHAPES = [(64, 64), (33, 576), (20, 17), (5, 100), (16, 8)]
COUNTS = [1, 2, 5, 17, 40]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return reproducible normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def set_path(layer: Int8DynamicLinear, path: str) -> None:
    """Make ``layer`` take one of its three ways to multiply."""
    layer.dense_from = NEVER if path == "few" else 1
    layer.multiplies_integers = path == "integers"


@pytest.mark.parametrize("path", ["few", "integers", "floats"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_path_is_the_product_of_the_integers(
    path: str, rows: int, columns: int, dtype: torch.dtype
) -> None:
    """All paths equal the float64 product of the rounded inputs, up to the output's dtype."""
    codes = quantize(random(rows, columns), Int8())
    bias = random(rows, seed=1).to(torch.bfloat16)
    layer = Int8DynamicLinear(codes, bias)
    set_path(layer, path)
    for count in COUNTS:
        x = (random(count, columns, seed=count) * torch.logspace(-3, 3, count)[:, None]).to(dtype)
        integers, steps = round_tokens(x)
        weight = codes.codes.double() * codes.scales.double()
        expected = (integers.double() @ weight.T) * steps.double() + bias.double()
        result = layer(x)
        assert result.dtype == dtype
        exact = dtype == torch.float32
        worst = (result.double() - expected).abs().amax(1) / expected.abs().amax(1)
        assert float(worst.max()) < (1e-5 if exact else 0.01)


@pytest.mark.parametrize("path", ["few", "integers", "floats"])
@pytest.mark.parametrize(("sign", "low"), [(1.0, 127), (-1.0, -128)])
def test_extreme_integers_do_not_saturate(path: str, sign: float, low: int) -> None:
    """The largest sum there is, 576 products at full scale, comes out whole.

    16-bit partial sums, as AVX2 makes them of u8 and s8, give less than a hundredth of it.
    """
    ones = torch.ones(64, 1, dtype=torch.bfloat16)
    codes = Codes(
        codes=torch.full((64, 576), 127, dtype=torch.int8), scales=ones, zeros=None, bits=8
    )
    layer = Int8DynamicLinear(codes, None)
    set_path(layer, path)
    x = torch.full((3, 576), sign * 127.5)
    assert set(round_tokens(x)[0].view(-1).tolist()) == {low}
    expected = low * 127 * 576
    assert torch.allclose(layer(x), torch.full((3, 64), float(expected)), rtol=0.005)


@pytest.mark.parametrize("values", ["normal", "zero row", "one spike", "tiny"])
def test_inputs_are_rounded_as_compressed_tensors_does(values: str) -> None:
    """The rounded inputs equal the library's own fake quantization per token."""
    x = random(6, 96)
    if values == "zero row":
        x[2] = 0
    elif values == "one spike":
        x[:, 7] = -300.0
    elif values == "tiny":
        x *= 1e-20
    args = QuantizationArgs(num_bits=8, type="int", strategy="token", symmetric=True, dynamic=True)
    # The library counts batch and position as the axes of a token.
    tokens = x.unsqueeze(0)
    scale, zero = compute_dynamic_scales_and_zp(tokens, args, torch.nn.Identity())
    theirs = fake_quantize(tokens, scale, zero, args)[0]
    integers, steps = round_tokens(x)
    assert torch.equal(integers * steps, theirs)


def test_it_differs_from_weight_only_by_the_rounding_of_inputs() -> None:
    """W8A8 of the same codes is near the weight-only product, and is not that product."""
    codes = quantize(random(64, 576), Int8())
    x = random(4, 576, seed=3)
    dynamic, weight_only = Int8DynamicLinear(codes, None), Int8Linear(codes, None)
    dynamic.dense_from = weight_only.dense_from = 1
    difference = (dynamic(x) - weight_only(x)).norm() / weight_only(x).norm()
    assert 0.001 < float(difference) < 0.02
    assert dynamic.kernel != weight_only.kernel
    assert dynamic.weight_bytes == weight_only.weight_bytes
