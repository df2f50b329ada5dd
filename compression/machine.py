"""What a build needs of the machine, checked before a weight is read; free of torch."""

from importlib.util import find_spec
from pathlib import Path

import psutil

from compression.errors import BuildError
from compression.plan import Plan
from compression.schemes import Nf4

_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def require_machine(plan: Plan) -> None:
    """Refuse a build that cannot end well here.

    Raises:
        BuildError: a library is not installed, or all of the memory is less than the build takes.
    """
    if any(isinstance(scheme, Nf4) for scheme in plan.recipe.schemes) and not _has_bitsandbytes():
        raise BuildError(
            f"recipe {plan.recipe.name!r} has nf4, which needs the package bitsandbytes: install "
            "it, or use int4"
        )
    needed, total = plan.peak_bytes, memory_bytes()
    if needed > total:
        raise BuildError(
            f"recipe {plan.recipe.name!r} may take {needed / 1e9:.1f} GB of memory to build, this "
            f"machine has {total / 1e9:.1f} GB with swap: use a recipe without calibration such as "
            "int8-fast or int4-fast, fewer calibration.tokens, or a larger machine"
        )


def memory_bytes() -> int:
    """Return the memory that this process may use at most, swap included, in bytes."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # another version of cgroups, or no limit
            continue
    return total + int(psutil.swap_memory().total)


def _has_bitsandbytes() -> bool:
    return find_spec("bitsandbytes") is not None
