"""Products with int4 and int5 on every kind of processor that this one can stand in for."""

import os
import platform
import subprocess
import sys

import llvmlite.binding
import pytest

_AVX2 = "avx,avx2,fma,f16c,sse4.2,ssse3"
_AVX512 = f"{_AVX2},avx512f,avx512bw,avx512vl,avx512dq"
PROCESSORS = {
    "AVX-512 with VNNI": (f"{_AVX512},avx512vnni", (16, True, True)),
    "AVX-512": (_AVX512, (16, False, True)),
    "AVX2 with VNNI": (f"{_AVX2},avxvnni", (8, True, True)),
    "AVX2": (_AVX2, (8, False, True)),
    "SSSE3": ("ssse3", (4, False, True)),
    "none of them": ("sse2", (4, False, False)),
}
"""Features, then the rows of a vector and which instructions the kernel shall use."""

CHECK = """
import torch
from compression.kernels import grouped_tile
from compression.packed import make_grouped_linear
from compression.schemes import Int4, Int5
from compression.weights.codes import Codes
from compression.weights.quantizer import quantize

for kind in (Int4, Int5):
    for group_size, rows, columns in ((32, 7, 96), (32, 37, 1568), (64, 16, 192), (128, 65, 384)):
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
        codes = quantize(weight, kind(group_size=group_size, method="rtn"))
        for count in (1, 4, 6):
            x = torch.randn(count, columns, generator=torch.Generator().manual_seed(count))
            expected = x @ codes.dequantize().T
            error = make_grouped_linear(codes, None)(x) - expected
            case = kind.bits, group_size, rows, columns, count
            assert error.norm() < 1e-4 * expected.norm(), case

    # The largest sums there are: the peak, and codes of inputs whose low byte is -128 (high 0).
    most = 2**kind.bits - 1
    full = torch.full((20, 256), most, dtype=torch.int8)
    ones, zeros = torch.ones(20, 8, dtype=torch.bfloat16), torch.zeros(20, 8, dtype=torch.int8)
    layer = make_grouped_linear(Codes(full, ones, zeros, kind.bits), None)
    for each in (-128.0, -32639.0, 32639.0, 32512.0 - 128.0):
        x = torch.full((5, 256), each)
        x[:, 0] = 32639.0
        exact = (most * x.double().sum(1)).view(5, 1).expand(5, 20)
        assert torch.all((layer(x).double() - exact).abs() <= 2**-23 * exact.abs()), (kind, each)
print((grouped_tile.LANES, grouped_tile.HAS_VNNI, grouped_tile.HAS_PAIRS))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="features of x86-64 processors")
@pytest.mark.parametrize("name", PROCESSORS)
def test_products_are_those_of_the_dequantized_weight(name: str) -> None:
    """Whatever instructions a processor has, sums are exact and scales are applied to them."""
    features, used = PROCESSORS[name]
    host = llvmlite.binding.get_host_cpu_features()
    missing = [each for each in features.split(",") if not host.get(each)]
    if missing:
        pytest.skip(f"this processor lacks {missing}")
    environment = os.environ | {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": ",".join(f"+{each}" for each in features.split(",")),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(used)
