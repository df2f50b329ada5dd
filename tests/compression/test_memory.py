"""What the allocator holds and nobody uses goes back to the system."""

import platform
import subprocess
import sys

import pytest

_HOLES = """
import psutil, torch
from compression.memory import return_free_memory

MIB = 1 << 20
rss = lambda: psutil.Process().memory_info().rss
filled = lambda size: torch.ones(size, dtype=torch.uint8)
large = filled(30 * MIB)
del large  # glibc keeps blocks of up to this size from now on
between, blocks = [], []
for _ in range(50):
    blocks.append(filled(4 * MIB))
    between.append(filled(1024))  # holds the heap's end where it is
before = rss()
del blocks
held = rss()
return_free_memory()
print(before - held, held - rss())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_holes_in_the_heap_go_back() -> None:
    """200 MiB of freed tensors between living ones are held, and then are not."""
    words = [sys.executable, "-c", _HOLES]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    freed_by_python, freed = map(int, result.stdout.split())
    assert freed_by_python < 40 << 20
    assert freed > 150 << 20
