"""Compile the kernels ahead: ``python -m compression.kernels``."""

import sys

from compression.kernels.team import compile_kernels
from compression.paths import kernels_dir


def main() -> None:
    """Compile and say how long it took and where the result lies."""
    seconds = compile_kernels()
    sys.stdout.write(f"kernels for this processor: {seconds:.1f} s, kept in {kernels_dir()}\n")


if __name__ == "__main__":
    main()
