"""Compile all kernels ahead: ``python -m compression.kernels``."""

import sys
import time

from compression.kernels import attention, operations
from compression.kernels.matrix_operations import ON_UNIT
from compression.kernels.matrix_unit import permission
from compression.kernels.team import compile_team
from compression.paths import kernels_dir


def main() -> None:
    """Compile what is not kept yet, and say how long it took and where it lies."""
    start = time.perf_counter()
    compile_team()
    by_rows = (operations.NORM, operations.GATE, operations.TURN, operations.MERGE)
    kernels = (*operations.PRODUCTS.values(), *by_rows, operations.ATTEND)
    on_unit = ON_UNIT.values() if permission() else ()
    for kernel in (*kernels, *on_unit, *attention.SCORES, *attention.SUMS, attention.MIX):
        kernel.compile()
    seconds = time.perf_counter() - start
    sys.stdout.write(f"kernels for this processor: {seconds:.1f} s, kept in {kernels_dir()}\n")


if __name__ == "__main__":
    main()
