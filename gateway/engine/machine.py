"""What a comparison was measured on: processor, threads, versions, kernels."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from compression.processor import processor

_LIBRARIES = ("narrowgate", "torch", "transformers", "tokenizers")


def describe_machine(kernels: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the machine as plain data; ``kernels`` are those of each live model by its name."""
    return {
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "torch": torch.__version__,
        "versions": _versions(),
        "kernels": {name: dict(of) for name, of in kernels.items()},
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
