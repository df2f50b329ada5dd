"""int4 weights in groups on PyTorch's own kernel, for processors that vLLM has none for.

vLLM chooses its CPU kernel for int4 even where its library was built without it (AVX2 alone), and
dies at the first token.
"""

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import (
    MPLinearKernel,
    MPLinearLayerConfig,
)
from vllm.platforms import current_platform
from vllm.scalar_type import scalar_types

_GROUPS = frozenset({32, 64, 128, 256})
_ROW_BLOCK = 16
_MIDDLE = 8
"""The code of zero, where a group has no zero point of its own."""


@torch.library.custom_op("narrowgate::int4_linear", mutates_args=())
def int4_linear(
    x: torch.Tensor, packed: torch.Tensor, group_size: int, scales_and_offsets: torch.Tensor
) -> torch.Tensor:
    """Return ``x [M, K]`` times a packed ``[N, K]`` weight transposed.

    ``scales_and_offsets`` is ``[K / group_size, N, 2]``: ``w = (code - 8) * scale + offset``.
    """
    return torch.ops.aten._weight_int4pack_mm_for_cpu(
        x.contiguous(), packed, group_size, scales_and_offsets
    )


@int4_linear.register_fake
def _shape(
    x: torch.Tensor, packed: torch.Tensor, group_size: int, scales_and_offsets: torch.Tensor
) -> torch.Tensor:
    return x.new_empty(x.shape[0], scales_and_offsets.shape[1])


class WeightOnlyInt4Kernel(MPLinearKernel):
    """int4 per group, symmetric or not, activations as they are (W4A16)."""

    @classmethod
    def get_min_capability(cls) -> int:
        """Return -1: it needs no GPU."""
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Return whether it can stand in for such a layer."""
        columns, rows = c.partition_weight_shape
        if not current_platform.is_cpu():
            return False, "requires a CPU"
        if c.weight_type not in (scalar_types.uint4, scalar_types.uint4b8):
            return False, f"has no kernel for {c.weight_type}"
        if c.group_size not in _GROUPS or columns % c.group_size:
            return False, f"needs groups of {sorted(_GROUPS)} that divide {columns}"
        if rows % _ROW_BLOCK:
            return False, f"needs rows in blocks of {_ROW_BLOCK}"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Bring codes, scales and zero points into the order of PyTorch's kernel."""
        words, scales, zeros = self._get_weight_params(layer)
        codes = _nibbles(words.data)
        middle = torch.full_like(scales, _MIDDLE) if zeros is None else _nibbles(zeros.data.t()).t()
        scales = scales.data.to(torch.float32)
        offsets = (_MIDDLE - middle.to(torch.float32)) * scales
        pairs = torch.stack([scales, offsets], dim=-1).transpose(0, 1).contiguous()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.contiguous(), 1)
        _replace(layer, self.w_q_name, packed)
        _replace(layer, self.w_s_name, pairs.to(self.config.act_type))
        if self.w_zp_name is not None:
            setattr(layer, self.w_zp_name, None)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the layer's output for ``x [..., K]``."""
        packed, pairs, _ = self._get_weight_params(layer)
        out = int4_linear(x.reshape(-1, x.shape[-1]), packed, self.config.group_size, pairs)
        out = out if bias is None else out + bias
        return out.reshape(*x.shape[:-1], out.shape[-1])


def _nibbles(words: torch.Tensor) -> torch.Tensor:
    """Return the codes of ``words [N, K / 8]`` int32, the lowest bits first: ``[N, K]`` int32."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 0xF).reshape(words.shape[0], -1)


def _replace(layer: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    setattr(layer, name, torch.nn.Parameter(tensor, requires_grad=False))
