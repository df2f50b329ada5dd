"""The ``quantization_config`` entry of an artifact's config.json, by which engines read it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from compression.plan import Plan, module_of
from compression.recipe import LINEAR
from compression.schemes import AnyWeight, Grouped, Int8, Nf4, Unquantized

HEAD = "lm_head"
_INT8_ACTIVATIONS: Mapping[str, Any] = MappingProxyType(
    {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
)


def quantization_config(plan: Plan) -> dict[str, Any] | None:
    """Return the entry for a plan; None if no linear layer changes.

    bitsandbytes' own for nf4, compressed-tensors' for int8, int5 and int4, with one config group a
    format. int8 is written with dynamic per-token activations (W8A8): the same codes and scales
    serve engines that quantize activations (vLLM) and engines that do not (the embedded one).
    """
    modules: dict[AnyWeight, list[str]] = {}
    for tensor in plan.linears:
        kind = _format_of(tensor.scheme)
        modules.setdefault(kind, []).append(module_of(tensor.fact.name))
    kept = [*modules.pop(Unquantized(), []), *sorted(plan.facts.routers)]
    if not modules:
        return None
    if Nf4() in modules:
        return _bitsandbytes(kept)
    return _compressed_tensors(modules, kept, is_known=plan.facts.known is not None)


def _format_of(scheme: AnyWeight) -> AnyWeight:
    """Return the scheme without the method, which a reader of the artifact need not know."""
    match scheme:
        case Int8():
            return Int8()
        case Grouped(group_size=group, symmetric=symmetric):
            return type(scheme)(group_size=group, symmetric=symmetric)
        case _:
            return scheme


def _compressed_tensors(
    modules: Mapping[AnyWeight, list[str]], kept: list[str], *, is_known: bool
) -> dict[str, Any]:
    """Several schemes are told apart by exact paths.

    vLLM prefers a target that is part of the class's name, such as ``Linear``, to the paths of the
    parts of a fused layer: beside ``Linear``, a group of exact paths would never reach q, k and v.
    """
    groups: dict[str, Any] = {}
    for index, (scheme, paths) in enumerate(modules.items()):
        targets = [LINEAR] if len(modules) == 1 and is_known else paths
        groups[f"group_{index}"] = {"targets": targets, **_group(scheme)}
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": [HEAD, *kept],
        "config_groups": groups,
    }


def _group(scheme: AnyWeight) -> dict[str, Any]:
    weights: dict[str, Any]
    match scheme:
        case Int8():
            layout = "int-quantized"
            weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
        case Grouped(bits=bits, group_size=group, symmetric=symmetric):
            layout = "pack-quantized"
            weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group"}
            weights["group_size"] = group
        case _:
            raise ValueError(f"{scheme.label} has no form in compressed-tensors")
    weights["dynamic"] = False
    activations = dict(_INT8_ACTIVATIONS) if isinstance(scheme, Int8) else None
    return {"weights": weights, "input_activations": activations, "format": layout}


def _bitsandbytes(kept: list[str]) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_skip_modules": [HEAD, *kept],
    }
