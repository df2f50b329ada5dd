"""What a worker holds, read from the live model: schemes, kernels, numerics, cache and bytes."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.version import __version__

_BLOCK_OF_NF4 = 64
_FP8_OF_WEIGHTS_ALONE = frozenset(
    {
        "CPUFp8BlockScaledMMKernel",
        "CPUFp8PerTensorScaledMMLinearKernel",
        "MarlinFP8ScaledMMLinearKernel",
    }
)
"""Kernels whose inputs stay in 16 bits; others round them or not by what they were given."""


class WorkerExtension:
    """Adds one method to vLLM's worker, which ``collective_rpc`` can call."""

    model_runner: Any

    def narrowgate_describe(self) -> dict[str, Any]:
        """Return the worker's part of ``GET /engine/info``; plain data only."""
        model, config = self.model_runner.get_model(), self.model_runner.vllm_config
        schemes: dict[str, int] = {}
        kernels: dict[str, set[str]] = {}
        numerics: dict[str, set[str]] = {}
        described = [(_describe_linear(each), _num_parts(each)) for each in _linears(model)]
        described += [(_describe_experts(each), _num_matrices(each)) for each in _experts(model)]
        for (label, kernel, numeric), count in described:
            schemes[label] = schemes.get(label, 0) + count
            kernels.setdefault(label, set()).add(kernel)
            numerics.setdefault(label, set()).add(numeric)
        return {
            "architecture": type(model).__name__,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "schemes": schemes,
            "kernels": {label: ", ".join(sorted(found)) for label, found in kernels.items()},
            "numerics": {label: ", ".join(sorted(found)) for label, found in numerics.items()},
            "weights_bytes": _weight_bytes(model),
            "kv_layers": _cache_layers(config.compilation_config.static_forward_context),
            "threads": torch.get_num_threads(),
            "pid": os.getpid(),
            "version": __version__,
        }


def _linears(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the linear layers of the decoder; embeddings and the output head are none of them."""
    from vllm.model_executor.layers.linear import LinearBase

    for module in model.modules():
        if isinstance(module, LinearBase):
            yield module


def _experts(model: torch.nn.Module) -> Iterator[Any]:
    """Yield the modules that hold a layer's experts; older versions have another name for them."""
    for module in model.modules():
        if type(module).__name__ == "RoutedExperts":
            yield module


def _num_matrices(experts: Any) -> int:
    """Return of how many matrices of the checkpoint the experts of a layer are made."""
    return (3 if experts.moe_config.is_act_and_mul else 2) * int(experts.local_num_experts)


def _num_parts(layer: torch.nn.Module) -> int:
    """Return of how many layers of the checkpoint a fused one is made."""
    return len(getattr(layer, "output_sizes", None) or getattr(layer, "logical_widths", [0]))


def _describe_linear(layer: torch.nn.Module) -> tuple[str, str, str]:
    """Return the layer's scheme in our words, its kernel, and the bits that are multiplied."""
    method: Any = getattr(layer, "quant_method", None)
    scheme: Any = getattr(layer, "scheme", None)
    kernel = getattr(scheme, "kernel", None) or getattr(method, "kernel", None)
    kernel = kernel or getattr(method, "fp8_linear", None)
    name = type(kernel or scheme or method).__name__
    match type(scheme).__name__:
        case "CompressedTensorsW8A8Int8":
            rows = "rows" if str(scheme.strategy).rpartition(".")[2].lower() == "channel" else "one"
            is_weight_only = name == "WeightOnlyInt8Kernel"
            return f"int8-{rows}", name, "W8A16" if is_weight_only else "W8A8"
        case "CompressedTensorsWNA16":
            kind = "sym" if scheme.symmetric else "asym"
            group = "rows" if scheme.group_size < 0 else f"g{scheme.group_size}-{kind}"
            rounds = bool(getattr(layer, "use_w4a8", False))
            return (
                f"int{scheme.num_bits}-{group}",
                name,
                f"W{scheme.num_bits}A{8 if rounds else 16}",
            )
    numeric = "W8A16" if name in _FP8_OF_WEIGHTS_ALONE else "unknown"
    match type(method).__name__:
        case "UnquantizedLinearMethod":
            return "none", _dense_kernel(layer), "W16A16"
        case "BitsAndBytesLinearMethod":
            return f"nf4-b{_BLOCK_OF_NF4}", name, "W4A16"
        case "Fp8PerTensorOnlineLinearMethod":
            return "fp8-tensor", name, numeric
        case "Fp8PerBlockOnlineLinearMethod":
            return "fp8-block", name, numeric
        case "Fp8PtpcOnlineLinearMethod":
            return "fp8-rows", name, numeric
    return type(scheme or method).__name__, name, "unknown"


def _describe_experts(experts: Any) -> tuple[str, str, str]:
    """Return the experts' scheme in our words, their kernel, and the bits that are multiplied."""
    method = experts.quant_method
    kernel = getattr(method, "experts_cls", None)
    name = type(method).__name__ if kernel is None else kernel.__name__
    match type(method).__name__:
        case "CompressedTensorsW8A8Int8MoEMethod":
            return "int8-rows", name, "W8A8"
        case "CompressedTensorsWNA16MoEMethod":
            kind = "sym" if method.symmetric else "asym"
            # on a processor activations are rounded inside the kernel
            bits = 8 if name == "CPUExpertsInt4" else 16
            label = f"int{method.num_bits}-g{method.group_size}-{kind}"
            return label, name, f"W{method.num_bits}A{bits}"
        case "UnquantizedFusedMoEMethod":
            return "none", name, "W16A16"
    return type(method).__name__, name, "unknown"


def _dense_kernel(layer: torch.nn.Module) -> str:
    """Return what multiplies an unquantized layer; on a processor vLLM chooses it layer by layer.

    It leaves no other trace of the choice than a function on the layer that calls the kernel.
    """
    function: Any = getattr(layer, "cpu_linear", None)
    code = getattr(function, "__code__", None)
    called = code.co_names if code else ()
    name = called[-1] if called else getattr(function, "__name__", None)
    return "dense" if name is None else f"dense ({name})"


def _weight_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of weights; what a kernel has packed for itself counts by its shape."""
    seen: dict[int, int] = {}
    tensors = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        seen[tensor.data_ptr()] = max(
            seen.get(tensor.data_ptr(), 0), tensor.numel() * tensor.element_size()
        )
    return sum(seen.values()) + sum(_packed_bytes(layer) for layer in _linears(model))


def _packed_bytes(layer: torch.nn.Module) -> int:
    """Return the bytes of a weight that is held by its kernel alone, in no tensor of the layer."""
    scheme: Any = getattr(layer, "scheme", None)
    handler = getattr(getattr(scheme, "kernel", None), "dnnl_handler", None)
    if handler is not None:
        return int(handler.n) * int(handler.k)
    weight: Any = getattr(layer, "weight", None)
    if getattr(layer, "cpu_linear", None) is None or weight is None or weight.numel():
        return 0
    # A layer that every worker holds whole, such as a router, has no partitions.
    rows: Any = getattr(layer, "output_size_per_partition", None) or layer.output_size
    columns: Any = getattr(layer, "input_size_per_partition", None) or layer.input_size
    return int(rows) * int(columns) * int(weight.element_size())


def _cache_layers(layers: Mapping[str, Any]) -> dict[str, str]:
    """Return how each layer of this worker keeps its keys and values, by the layer's number."""
    found = {}
    for name, layer in layers.items():
        tensors = [each for each in _tensors(getattr(layer, "kv_cache", None)) if each.numel()]
        numbers = [part for part in name.split(".") if part.isdigit()]
        if tensors and numbers:
            found[numbers[0]] = _held(tensors, str(getattr(layer, "kv_cache_dtype", "auto")))
    return found


def _held(tensors: list[torch.Tensor], called: str) -> str:
    """Return what the tensors of one layer's cache hold; single bytes are what the layer says."""
    widest = max(tensors, key=lambda tensor: tensor.element_size())
    is_coded = widest.element_size() == 1 and called != "auto"
    return called if is_coded else str(widest.dtype).removeprefix("torch.")


def _tensors(found: object) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        for value in found.values():
            yield from _tensors(value)
    elif isinstance(found, (list, tuple)):
        for value in found:
            yield from _tensors(value)
