"""Int8 weights under inputs that are rounded to int8 as well (W8A8)."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed.compiled import Operand
from compression.packed.int8 import Int8Linear
from compression.packed.linear import DENSE_BLOCK_ELEMENTS
from compression.weights.codes import Codes


class Int8DynamicLinear(Int8Linear):
    """int8 rows times inputs rounded per token, as compressed-tensors rounds them.

    The compiled kernel takes integers of 16 bits, so those of eight are exact in it. Where an
    engine is asked to read in float32: ``torch._int_mm`` if the processor has int8 dot products,
    else an f32 product of the same integers. Kernels that saturate 16-bit sums, as u8 x s8 does on
    AVX2 without VNNI, are not used at all.
    """

    kernel = "int8x8"
    numerics = "W8A8"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        super().__init__(codes, bias)
        self.multiplies_integers = has_int8_dot_products()

    @property
    def operand(self) -> Operand:
        """Return the weight; its tensors are those of this layer."""
        return replace(super().operand, peak=2)

    def _many_rows(self, x: Tensor) -> Tensor:
        codes, steps = round_tokens(x)
        product = self._integer_product if self.multiplies_integers else self._float_product
        return product(codes).mul_(steps).to(x.dtype)

    def _integer_product(self, codes: Tensor) -> Tensor:
        integers = functional.pad(codes.to(torch.int8), (0, self.packed.shape[1] - self.columns))
        return torch._int_mm(integers, self.packed.t()) * self.scales.to(torch.float32)

    def _float_product(self, codes: Tensor) -> Tensor:
        return self._dense_product(codes, DENSE_BLOCK_ELEMENTS)


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of ``x [m, columns]`` to int8, symmetrically.

    Returns:
        The integers -128…127 as float32 ``[m, columns]``, and the float32 step ``[m, 1]`` of each
        row, which is ``absmax / 127.5``: the formula of compressed-tensors.
    """
    largest = torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True, dtype=torch.float32)
    steps = largest.div_(127.5).clamp_min_(torch.finfo(torch.float32).tiny)
    return (x / steps).round_().clamp_(-128, 127), steps


def has_int8_dot_products() -> bool:
    """Return whether this processor adds up int8 products in 32 bits by itself."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("amx_int8"))
