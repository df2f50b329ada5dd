"""Compile all kernels ahead: ``python -m compression.kernels``."""

import sys
import time

from compression.kernels.attention import MIX
from compression.kernels.attention_on_unit import ATTEND_ON_UNIT
from compression.kernels.attention_operations import ATTEND, MERGE, TURN
from compression.kernels.attention_row_functions import every_row_function
from compression.kernels.matrix_operations import ON_UNIT
from compression.kernels.matrix_unit import permission
from compression.kernels.product_operations import PRODUCTS
from compression.kernels.row_operations import GATE, NORM
from compression.kernels.team import compile_team
from compression.paths import kernels_dir


def main() -> None:
    """Compile what is not kept yet, and say how long it took and where it lies."""
    start = time.perf_counter()
    compile_team()
    by_rows = (NORM, GATE, TURN, MERGE)
    kernels = (*PRODUCTS.values(), *by_rows, ATTEND, MIX)
    on_unit = (*ON_UNIT.values(), ATTEND_ON_UNIT) if permission() else ()
    for kernel in (*kernels, *on_unit, *every_row_function()):
        kernel.compile()
    seconds = time.perf_counter() - start
    sys.stdout.write(f"kernels for this processor: {seconds:.1f} s, kept in {kernels_dir()}\n")


if __name__ == "__main__":
    main()
