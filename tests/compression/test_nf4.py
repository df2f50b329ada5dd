"""NF4: bitsandbytes' bytes, their meaning, and the layout of its fused kernel."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize, replace_with_bnb_linear

from compression.errors import ArtifactError
from compression.packed import Nf4FusedLinear, Nf4Linear, make_nf4_linear
from compression.packed.bitsandbytes_cpu import constant_rows, has_fused_product
from compression.packed.nf4 import interleave_rows, separate_rows
from compression.weights.nf4 import NF4_LEVELS, Nf4Codes, quantize_nf4, stack_nf4


def varied(rows: int, columns: int, *, seed: int = 0) -> torch.Tensor:
    """Return a reproducible bf16 weight with blocks of very different size."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return (values * torch.logspace(-6, 2, rows).unsqueeze(1)).to(torch.bfloat16)


def test_bytes_are_those_of_transformers(tiny_llama_dir: Path) -> None:
    """Every linear of a model that transformers quantizes holds the same bytes."""
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16)
    weights = {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    # What from_pretrained does with this config, less the placement, which takes accelerate.
    replace_with_bnb_linear(model, ["lm_head"], config)
    for name, weight in weights.items():
        stored = Bnb4bitQuantize(None).convert({name: weight}, name, model)[name]
        codes = quantize_nf4(weight)
        assert torch.equal(codes.packed, stored.data.view(-1))
        assert torch.equal(codes.absmax, stored.quant_state.absmax)
    assert len(weights) == 14


def test_values_are_those_of_bitsandbytes() -> None:
    """Reading the codes back gives bitsandbytes' own values, bit for bit."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    full = varied(48, 192)
    packed, state = quantize_4bit(full.float(), blocksize=64, quant_type="nf4")
    codes = quantize_nf4(full.float())
    assert torch.equal(codes.dequantize(), dequantize_4bit(packed, state))
    assert torch.equal(torch.tensor(NF4_LEVELS), state.code)


@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 96), (5, 17), (1, 1), (64, 128)])
def test_any_shape_keeps_its_values(rows: int, columns: int) -> None:
    """Ragged ends are padded in the last byte and block; no value is off by more than a step."""
    full = varied(rows, columns).float()
    codes = quantize_nf4(full)
    count = rows * columns
    assert codes.packed.shape == ((count + 1) // 2,)
    assert codes.absmax.shape == (-(-count // 64),)
    error = (codes.dequantize() - full).abs().view(-1)
    # Half of the widest gap between levels, 0.3039.
    assert bool((error <= 0.1525 * codes.absmax.repeat_interleave(64)[:count]).all())


def test_chunks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight quantized piece by piece has the bytes of one call."""
    full = varied(30, 64)
    whole = quantize_nf4(full)
    monkeypatch.setattr("compression.weights.nf4._CHUNK", 7 * 64)
    pieces = quantize_nf4(full)
    assert torch.equal(pieces.packed, whole.packed)
    assert torch.equal(pieces.absmax, whole.absmax)


def test_rows_are_selected_and_stacked() -> None:
    """Reordering and stacking codes equals doing so to the values."""
    first, second = quantize_nf4(varied(6, 128)), quantize_nf4(varied(4, 128, seed=1))
    order = torch.tensor([5, 0, 3, 1, 2, 4])
    stacked = stack_nf4([first.select_rows(order), second])
    expected = torch.cat([first.dequantize()[order], second.dequantize()])
    assert torch.equal(stacked.dequantize(), expected)
    assert stacked.shape == (10, 128)


def test_blocks_across_rows_are_refused() -> None:
    """Rows that share a block can neither be moved nor be served; the message says what to do."""
    codes = quantize_nf4(varied(4, 96))
    for use in (
        lambda: codes.select_rows(torch.arange(4)),
        lambda: stack_nf4([codes, codes]),
        lambda: make_nf4_linear(codes, None),
        lambda: Nf4FusedLinear(codes, None),
    ):
        with pytest.raises(ArtifactError, match=r"96 columns.*use the recipe int8 or int4"):
            use()


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (96, 192), (64, 1024)])
def test_layout_is_that_of_bitsandbytes(rows: int, columns: int) -> None:
    """Codes are interleaved as bitsandbytes does it for its kernel, and back."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu, quantize_4bit

    packed, state = quantize_4bit(varied(rows, columns).float(), blocksize=64, quant_type="nf4")
    ours = interleave_rows(packed.view(rows, -1))
    assert torch.equal(separate_rows(ours), packed.view(rows, -1))
    theirs, state = _convert_weight_packed_for_cpu(packed, state)
    assert torch.equal(ours.view(-1), theirs.view(-1))


def test_the_probe_of_the_fused_kernel_is_in_its_layout() -> None:
    """The weight on which the kernel is checked is rows of one code each."""
    codes = (torch.arange(32) % 16 * 0x11).to(torch.uint8)
    assert torch.equal(constant_rows(), interleave_rows(codes.unsqueeze(1).expand(32, 32)))


@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (100, 192), (7, 128)])
def test_fused_layer_unpacks_what_it_was_given(rows: int, columns: int) -> None:
    """The fused layer's form reads back as the weight with its absmax in bf16, by blocks too."""
    codes = quantize_nf4(varied(rows, columns))
    rounded = Nf4Codes(codes.packed, codes.absmax.to(torch.bfloat16).float(), codes.shape)
    layer = Nf4FusedLinear(codes, None)
    expected = rounded.dequantize()
    assert torch.equal(layer.unpack(slice(0, rows), torch.float32), expected)
    if rows > 64:
        assert torch.equal(layer.unpack(slice(64, 128), torch.float32), expected[64:])
    layer.dense_from = 1
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(layer(x), x @ expected.T, rtol=1e-4, atol=1e-4)


def test_the_layer_says_what_really_runs() -> None:
    """The fused kernel is named where it runs, and nowhere else."""
    layer = make_nf4_linear(quantize_nf4(varied(64, 64)), None)
    fused = isinstance(layer, Nf4FusedLinear)
    assert fused == has_fused_product()
    assert layer.kernel == ("nf4-bitsandbytes" if fused else "nf4-unpack")
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        assert isinstance(layer, Nf4Linear)


@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="needs AVX512-BF16")
@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (100, 192), (7, 128)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 17, 40])
def test_fused_kernel_equals_the_dequantized_product(rows: int, columns: int, count: int) -> None:
    """bitsandbytes' kernel agrees with plain matrix algebra up to its bf16 levels and absmax."""
    assert has_fused_product()
    codes = quantize_nf4(varied(rows, columns))
    layer = Nf4FusedLinear(codes, None)
    layer.dense_from = 1 << 30
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = x.float() @ codes.dequantize().T
    assert float((layer(x).float() - expected).norm() / expected.norm()) < 0.01


def test_serving_does_not_import_bitsandbytes() -> None:
    """Multiplying with nf4 weights leaves the package, and the compiler it imports, unloaded."""
    code = (
        "import sys, torch\n"
        "from compression.packed import make_nf4_linear\n"
        "from compression.weights.nf4 import Nf4Codes\n"
        "codes = Nf4Codes(torch.full((2048,), 255, dtype=torch.uint8), torch.ones(64), (64, 64))\n"
        "y = make_nf4_linear(codes, None)(torch.ones(1, 64))\n"
        "assert y.tolist() == [[64.0] * 64], y\n"
        "assert 'bitsandbytes' not in sys.modules and 'torch._inductor' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
