"""Linear layers that run packed weights on kernels of the CPU, one a file.

A row count decides how: few rows stream the packed weight through a kernel that is limited by
memory, many rows unpack it block by block and multiply densely. Where one overtakes the other
depends on the processor and is measured (:mod:`compression.crossover`).
"""

from compression.packed.bf16 import Bf16Linear
from compression.packed.compiled import CompiledLinear
from compression.packed.grouped import Int4Linear, Int5Linear, make_grouped_linear
from compression.packed.int8 import Int8Linear
from compression.packed.int8_dynamic import Int8DynamicLinear
from compression.packed.linear import PackedLinear
from compression.packed.nf4 import Nf4FusedLinear, Nf4Linear, make_nf4_linear

__all__ = [
    "Bf16Linear",
    "CompiledLinear",
    "Int4Linear",
    "Int5Linear",
    "Int8DynamicLinear",
    "Int8Linear",
    "Nf4FusedLinear",
    "Nf4Linear",
    "PackedLinear",
    "make_grouped_linear",
    "make_nf4_linear",
]
