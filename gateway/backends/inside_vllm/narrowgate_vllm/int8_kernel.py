"""int8 weights times unrounded activations on a processor, for vLLM's table of kernels.

vLLM's own kernel for int8 weights rounds the inputs to 8 bits, too. And processors without VNNI add
pairs of 8-bit products in 16 bits, which overflow and are cut off: that kernel (oneDNN's) then
gives wrong sums without a word (oneDNN, developer guide, "Nuances of int8 computations"). This one
keeps activations in 16 bits, as the embedded engine does, and is exact up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import (
    Int8ScaledMMLinearKernel,
    Int8ScaledMMLinearLayerConfig,
)
from vllm.platforms import current_platform

DENSE_FROM_ROWS = 48
"""From so many rows on a float32 product is faster than the packed kernel (measured on AVX2)."""
NATIVE_FROM_ROWS = 32
"""The same where the processor multiplies bf16 and adds in float32 (measured with AMX)."""

_PACKED_COLUMNS = 16
"""PyTorch's packed kernel reads rows in steps of so many values, and crashes at others."""


@torch.library.custom_op("narrowgate::int8_linear", mutates_args=())
def int8_linear(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return ``x [M, K]`` times ``weight [N, K]`` int8 transposed, scaled by ``scales [N]``."""
    # bf16 holds inputs and codes as they are, so that the products lose nothing by it.
    is_native = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    few = NATIVE_FROM_ROWS if is_native else DENSE_FROM_ROWS
    if x.shape[0] < few and x.shape[1] % _PACKED_COLUMNS == 0:
        return torch._weight_int8pack_mm(x.contiguous(), weight, scales)
    with _float32_products_in("bf16" if is_native else "ieee"):
        return (x.float() @ weight.float().t()).mul_(scales.float()).to(x.dtype)


@contextmanager
def _float32_products_in(precision: str) -> Iterator[None]:
    """Have oneDNN multiply float32 matrices in another precision; sums are float32 in any."""
    products = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    before = products.fp32_precision
    products.fp32_precision = precision
    try:
        yield
    finally:
        products.fp32_precision = before


@int8_linear.register_fake
def _shape(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


class WeightOnlyInt8Kernel(Int8ScaledMMLinearKernel):
    """int8 per output channel, activations as they are (W8A16)."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Return whether it runs on this platform."""
        return (True, None) if current_platform.is_cpu() else (False, "requires a CPU")

    @classmethod
    def can_implement(cls, c: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        """Return whether it can stand in for such a layer."""
        if not c.is_channelwise:
            return False, "needs one scale a channel"
        if c.is_static_input_scheme:
            return False, "rounds no activations, whose scales the checkpoint fixes"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Keep the weights as they are, the scales in the type of the activations."""
        _, scale_name, _, _, _ = self.layer_param_names
        scales = getattr(layer, scale_name).data.flatten().to(torch.get_default_dtype())
        setattr(layer, scale_name, torch.nn.Parameter(scales, requires_grad=False))

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the layer's output for ``x [..., K]``."""
        weight_name, scale_name, _, _, _ = self.layer_param_names
        weight, scales = getattr(layer, weight_name), getattr(layer, scale_name)
        out = int8_linear(x.reshape(-1, x.shape[-1]), weight, scales)
        out = out if bias is None else out + bias
        return out.reshape(*x.shape[:-1], out.shape[-1])
