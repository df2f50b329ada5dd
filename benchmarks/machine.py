"""What a figure was measured on: processor, memory, versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from compression.processor import processor

LIBRARIES = ("narrowgate", "torch", "transformers", "fastapi", "uvicorn", "httpx")


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that matter."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, object]:
    """Return the machine as one JSON-ready record."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(),
        "versions": versions(),
    }
