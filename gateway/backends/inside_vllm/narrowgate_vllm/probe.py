"""What an installed vLLM can do here, as one JSON line: ``python -m narrowgate_vllm.probe``."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

import torch

MARK = "narrowgate-vllm-probe:"
"""Before the line, because libraries print too."""

_SERVER_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")
_ROWS, _COLUMNS = 256, 512

_T = TypeVar("_T")


def main() -> int:
    """Print the facts and return the exit code."""
    print(MARK + json.dumps(facts()), flush=True)
    return 0


def facts() -> dict[str, Any]:
    """Return version, device, options with their choices, families, kernels."""
    import vllm
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.platforms import current_platform

    capability = current_platform.get_device_capability()
    is_cpu = current_platform.is_cpu()
    return {
        "version": vllm.__version__,
        "has_command": _is_installed("vllm"),
        "device": current_platform.device_type,
        "capability": None if capability is None else [capability.major, capability.minor],
        "num_devices": 0 if is_cpu else torch.cuda.device_count(),
        "has_tracing": _has_tracing(),
        **_options(),
        "architectures": sorted(ModelRegistry.get_supported_archs()),
        "has_bitsandbytes_plugin": _is_installed("vllm-bnb-plugin"),
        "cpu_features": (_checked(_cpu_features) if is_cpu else None) or [],
        "head_sizes": (_checked(_head_sizes) if is_cpu else None) or [],
        "int8_error": _checked(_int8_error) if is_cpu else None,
        "fp8_weights": _checked(_fp8_weights) if is_cpu else None,
        "has_int4_kernel": not is_cpu or hasattr(torch.ops._C, "cpu_gemm_wna16"),
    }


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def _has_tracing() -> bool:
    """Return whether spans can be sent over HTTP."""
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _checked(check: Callable[[], _T]) -> _T | None:
    """Return what a check of this machine finds; builds for other machines may lack its parts."""
    try:
        return check()
    except (ImportError, AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        print(f"{check.__name__}: {error}", file=sys.stderr)
        return None


def _options() -> dict[str, Any]:
    """Return each option of the server with its choices (None: any), and which take no value."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = _server_module().make_arg_parser(FlexibleArgumentParser())
    named = [
        (name, action)
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    ]
    return {
        "options": {
            name: None if action.choices is None else [str(choice) for choice in action.choices]
            for name, action in named
        },
        "flags": [name for name, action in named if action.nargs == 0],
    }


def _server_module() -> ModuleType:
    """Return the module that knows the server's options; it has moved between versions."""
    for name in _SERVER_MODULES[:-1]:
        with suppress(ModuleNotFoundError):
            return import_module(name)
    return import_module(_SERVER_MODULES[-1])


def _cpu_features() -> list[str]:
    checks = {
        "amx": torch.cpu._is_amx_tile_supported,
        "avx512": torch.cpu._is_avx512_supported,
        "vnni": torch.cpu._is_vnni_supported,
    }
    return [name for name, check in checks.items() if check()]


def _head_sizes() -> list[int]:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return list(CPUAttentionBackend.get_supported_head_sizes())


def _int8_error() -> float:
    """Return how far vLLM's int8 product is from the exact one, as a share of its norm.

    The kernel chooses between oneDNN and one on AMX by processor and shape, so it is asked itself.
    Codes cover their whole range, so that sums which overflow 16 bits show.
    """
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import (
        Int8ScaledMMLinearLayerConfig,
    )

    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=False, is_channelwise=True, input_symmetric=True
    )
    names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, _COLUMNS, generator=generator).to(torch.bfloat16)
    codes = torch.randint(-127, 128, (_ROWS, _COLUMNS), generator=generator, dtype=torch.int8)
    scales = torch.full((_ROWS, 1), 1 / 127)
    steps = x.double().abs().amax(dim=1, keepdim=True) / 127
    rounded = (x.double() / steps).round() * steps
    exact = rounded @ (codes.double() * scales.double()).t()
    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(codes, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scales, requires_grad=False)
    layer.input_scale = layer.input_zero_point = layer.bias = None
    layer.logical_widths = [_ROWS]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        kernel = CPUInt8ScaledMMLinearKernel(config, names)
        kernel.process_weights_after_loading(layer)
        out = kernel.apply_weights(layer, x)
    finally:
        torch.set_default_dtype(before)
    return float((out.double() - exact).norm() / exact.norm())


def _fp8_weights() -> list[str]:
    """Return the ways of rounding weights to fp8 at load that have all they call on a processor.

    Builds for processors declare vLLM's operators for GPUs without arguments: these do nothing.
    """
    from vllm import _custom_ops as ops

    if not ops._supports_cpu_fp8_w8a16 or not torch.cpu._is_amx_tile_supported():
        return []
    found = ["fp8_per_block"]
    if torch.ops._C.static_scaled_fp8_quant.default._schema.arguments:
        found += ["fp8", "fp8_per_tensor"]
    if torch.ops._C.dynamic_per_token_scaled_fp8_quant.default._schema.arguments:
        found.append("fp8_per_channel")
    return found


if __name__ == "__main__":
    sys.exit(main())
