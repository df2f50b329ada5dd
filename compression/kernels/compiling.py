"""How the functions of this package are compiled, and where the result is kept."""

import hashlib
import logging
import os
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import ir
from numba.extending import intrinsic

from compression.kernels.llvm import processor
from compression.paths import kernels_dir
from compression.schemes import GROUPED_ROWS, INT8_BLOCK

logger = logging.getLogger(__name__)


def _digest() -> str:
    """Return a digest of this package's sources, of the compiler and of the processor.

    numba looks only at the file of the outermost function, so a change in another one would go
    unnoticed without it; and two processors that share a home and start at the same time could
    take each other's files.
    """
    built_by = (numba.__version__, llvmlite.__version__, INT8_BLOCK, GROUPED_ROWS)
    found = hashlib.sha256(repr((built_by, processor())).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _directory() -> Path | None:
    """Return where machine code is kept, or None where nothing can be written there."""
    directory = kernels_dir() / _digest()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK | os.X_OK) else None


_DIRECTORY = _directory()
if _DIRECTORY is not None:
    numba.config.CACHE_DIR = str(_DIRECTORY)

_OPTIONS: Any = {"error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
"""Sums may be taken in any order, so that they become vectors. Numbers that are none stay so."""

compiled: Any = numba.njit(nogil=True, **_OPTIONS)
"""Compiles a function for others of this package to call."""
kept: Any = numba.njit(nogil=True, cache=_DIRECTORY is not None, **_OPTIONS)
"""Compiles a function for Python to call; its machine code is kept where it can be."""


def compiled_as(name: str) -> Any:
    """Return a decorator like :data:`compiled` for one of several functions of a factory.

    The linker takes functions of one name for one function, also those that other processes
    compiled and kept. Names differ from process to process by chance, so without one of its own
    a function would sometimes be another one.
    """

    def decorate(function: Any) -> Any:
        function.__qualname__ = name
        return compiled(function)

    return decorate


def linked(num_arguments: int) -> Any:
    """Return a decorator for functions of int64 that are called by their address.

    Each is compiled by itself when its address is first asked for, and kept on disk. A function
    that calls another one directly is optimized together with all that one calls.
    """

    def decorate(function: Any) -> "Linked":
        return Linked(function, num_arguments)

    return decorate


class Linked:
    """A function that is compiled when its address is asked for."""

    def __init__(self, function: Any, num_arguments: int) -> None:
        self._function = function
        self._signature = numba.void(*[numba.int64] * num_arguments)

    @cached_property
    def address(self) -> int:
        """Return where its machine code lies."""
        return int(self.compile().address)

    @cache  # noqa: B019 - kept for as long as the module that defines it
    def compile(self) -> Any:
        """Return its machine code, compiled now or read where it was kept."""
        make = partial(numba.cfunc, self._signature, **_OPTIONS)
        try:
            return make(cache=_DIRECTORY is not None)(self._function)
        except OSError as error:
            logger.warning("cannot keep compiled kernels in %s: %s", _DIRECTORY, error.strerror)
            return make(cache=False)(self._function)


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call a :class:`Linked` function at an address with a tuple of int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        long = ir.IntType(64)
        count = len(signature.args[1])
        kind = ir.FunctionType(ir.VoidType(), [long] * count)
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, [builder.extract_value(values[1], at) for at in range(count)])
        return context.get_dummy_value()

    return numba.void(numba.int64, numba.types.UniTuple(numba.int64, len(arguments))), generate
