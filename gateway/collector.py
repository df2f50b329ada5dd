"""Python's garbage collector, which stands back while a process starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Look for no garbage as long as the block runs.

    Modules and models leave next to none, but each of their objects would be looked at again and
    again while their number grows.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
