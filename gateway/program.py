"""What computes the answers of an engine here, by version: what may change them with no new weight.

It is read from what is installed, so that the gateway, which loads none of these libraries, and the
engine, which does, say the same.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

_PARTS = ("narrowgate", "torch", "numba", "llvmlite", "transformers", "bitsandbytes")
"""This project, and the libraries that multiply, compile kernels or run architectures for it."""


def program() -> str:
    """Return names and versions: ``narrowgate 0.1.0, torch 2.13.0, …``, of what is installed."""
    found = []
    for name in _PARTS:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
