"""Becomes another program, which the kernel ends together with the process that started it.

``python -I -S bound.py SIGNAL PARENT DESCRIPTOR PROGRAM [ARGUMENT ...]``. A program of its own,
because a process that is told such things between fork and exec must be forked, and forking a large
process stops all of it; it imports no more than that takes.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_CANNOT_START = 127


def main() -> None:
    """Ask the kernel, wait until the descriptor is closed elsewhere, and become the program."""
    number, parent, descriptor, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    os.read(int(descriptor), 1)
    os.close(int(descriptor))
    if os.getppid() != int(parent):
        sys.exit(1)  # it was gone before it was asked
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, and by what it becomes
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 (there is no shell)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(_CANNOT_START)


if __name__ == "__main__":
    main()
