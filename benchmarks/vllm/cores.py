"""What two cores of this machine do of the work of one: the limit of everything that scales."""

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

_SECONDS = 3.0
_AHEAD_S = 6.0
"""A new process imports torch meanwhile; all begin at one moment."""
_ROWS = 256
"""Of a square matrix; three of them lie in a core's own cache."""
_BYTES = 256 * 1024**2


def measure(_: Path, turns: int) -> dict[str, object]:
    """Return how many times one core's work two cores do at once: products, and bytes read."""
    first, second, *_rest = sorted(os.sched_getaffinity(0))
    found: dict[str, object] = {"turns": turns}
    for kind in ("multiply", "read"):
        pairs = [
            (sum(_rates(kind, [first])), sum(_rates(kind, [first, second])))
            for _turn in range(turns)
        ]
        found[f"{kind}_times"] = statistics.median(both / one for one, both in pairs)
    return found


def _rates(kind: str, cores: list[int]) -> list[float]:
    begin = time.monotonic() + _AHEAD_S
    with ProcessPoolExecutor(len(cores), mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(rate, kind, core, begin) for core in cores]
        return [each.result() for each in asked]


def rate(kind: str, core: int, begin: float) -> float:
    """Return how often one core does its work in a second, from ``begin`` on (monotonic).

    Raises:
        RuntimeError: it began too late to be beside the others.
    """
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    work = _multiply() if kind == "multiply" else _read()
    work()
    if time.monotonic() > begin:
        raise RuntimeError(f"core {core} was not ready in time: run it on a quiet machine")
    while time.monotonic() < begin:
        pass
    count, until = 0, begin + _SECONDS
    while time.monotonic() < until:
        work()
        count += 1
    return count / (time.monotonic() - begin)


def _multiply() -> Callable[[], object]:
    matrix, out = torch.ones(_ROWS, _ROWS), torch.empty(_ROWS, _ROWS)
    return lambda: torch.mm(matrix, matrix, out=out)


def _read() -> Callable[[], object]:
    buffer = torch.ones(_BYTES // 4)
    return lambda: buffer.sum()
