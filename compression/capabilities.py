"""What the numeric libraries can do here: ``python -m compression.capabilities``, one JSON line.

A process of its own, because a library that does not fit can take its process with it.
"""

import importlib
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement

from compression.child import run_child

MODULES: Mapping[str, str] = {
    "torch": "torch",
    "transformers": "transformers.modeling_utils",
    "bitsandbytes": "bitsandbytes",
    "torchvision": "torchvision",
    "torchaudio": "torchaudio",
    "torchcodec": "torchcodec",
}
"""What is imported of each package, to see whether it can be."""

_PINNED = (*MODULES, "vllm", "compressed-tensors")
# Whatever a broken shared library or an operator registered for another version raises.
_IMPORT_FAILURES = (ImportError, OSError, RuntimeError, AttributeError, ValueError, TypeError)
_COLUMNS = _ROWS = 2048


def main() -> int:
    """Report and return the exit code."""
    return run_child(lambda: ("capabilities", describe_capabilities()))


def describe_capabilities() -> dict[str, Any]:
    """Return versions, imports that fail, pins that do not hold, and what torch runs on."""
    versions = {name: found for name in _PINNED if (found := _version(name)) is not None}
    errors = {
        name: error
        for name, module in MODULES.items()
        if name in versions and (error := _import_error(module)) is not None
    }
    has_torch = "torch" in versions and "torch" not in errors
    return {
        "versions": versions,
        "import_errors": errors,
        "unmet": [pin for name in versions for pin in _unmet(name)],
        "torch": _describe_torch() if has_torch else None,
        "kernels": _time_kernels() if has_torch else [],
    }


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except _IMPORT_FAILURES as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return None


def _unmet(name: str) -> list[dict[str, str]]:
    """Return which of the package's requirements of others among ours do not hold."""
    found = []
    for text in distribution(name).requires or ():
        pin = Requirement(text)
        is_optional = pin.marker is not None and not pin.marker.evaluate({"extra": ""})
        version = None if is_optional or pin.name not in _PINNED else _version(pin.name)
        if version is not None and not pin.specifier.contains(version, prereleases=True):
            needed = f"{pin.name}{pin.specifier}"
            found.append({"package": name, "needs": needed, "found": version})
    return found


def _describe_torch() -> Mapping[str, Any]:
    import torch

    from compression.crossover import fast_dense_dtype

    has_gpu = torch.cuda.is_available()
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if has_gpu
        else [],
        "threads": torch.get_num_threads(),
        "capabilities": dict(torch.cpu.get_capabilities()),
        "dense_dtype": str(fast_dense_dtype()).removeprefix("torch."),
    }


def _time_kernels() -> list[dict[str, Any]]:
    """Time the packed kernels on one row against bf16, and find up to how many rows they win."""
    import torch

    from compression.crossover import measure_speed, tune
    from compression.packed import Int4Linear, Int5Linear, Int8Linear, PackedLinear
    from compression.packed.linear import NEVER
    from compression.weights.codes import Codes

    some, groups = 64, _COLUMNS // 32
    int8 = Codes(
        codes=torch.ones(some, _COLUMNS, dtype=torch.int8),
        scales=torch.ones(some, 1, dtype=torch.bfloat16),
        zeros=None,
        bits=8,
    )
    int4, int5 = (
        Codes(
            codes=torch.ones(some, _COLUMNS, dtype=torch.int8),
            scales=torch.ones(some, groups, dtype=torch.bfloat16),
            zeros=torch.ones(some, groups, dtype=torch.int8),
            bits=bits,
        )
        for bits in (4, 5)
    )
    found: list[dict[str, Any]] = []
    with torch.inference_mode():
        for kind, codes in ((Int8Linear, int8), (Int5Linear, int5), (Int4Linear, int4)):
            scheme = codes.label.partition("-")[0]
            try:
                layer: PackedLinear = kind(codes, None)
                # Another program may be at work during some of them.
                speeds = [measure_speed(layer, rows=_ROWS) for _ in range(3)]
                tune([layer])
            except (RuntimeError, NotImplementedError) as error:
                words = " ".join(str(error).split())[:300]
                found.append({"scheme": scheme, "error": words})
                continue
            times = round(max(each.bf16_microseconds / each.microseconds for each in speeds), 2)
            kernel = {"kernel": layer.kernel, "speed_against_bf16": times}
            most = None if layer.dense_from == NEVER else layer.dense_from - 1
            found.append({"scheme": scheme, **kernel, "packed_up_to_rows": most})
    return found


if __name__ == "__main__":
    sys.exit(main())
