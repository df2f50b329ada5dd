"""The embedded engine: a process that serves one model on this machine's processors.

``GOMP_SPINCOUNT`` is how long OpenMP threads spin for their next task before they sleep (10,000 is
about 0.1 ms). That is long enough from one matrix product to the next. The runtime's own choice is
thirty times as much: on a machine that does anything else, spinning threads then hold the
processors that the working ones wait for. PyTorch reads it once, so it must be set before.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
