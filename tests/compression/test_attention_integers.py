"""Attention of single queries over int8 keys and values against sums in float64."""

import ctypes
import mmap
import multiprocessing
from typing import Any

import numba
import numpy as np
import pytest
import torch

from compression.kernels.attention_row import ready_bytes
from compression.kernels.attention_row_functions import row_functions
from compression.kernels.attention_tiles import INT8, POSITIONS
from compression.kernels.compiling import call

KV_HEADS, HEAD = 3, 1
"""Heads that lie side by side, and which of them is read."""

QUERIES = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
WEIGHTS = np.random.default_rng(2).random((3, 64), np.float32)
BEFORE = np.zeros((3, 66), np.float32)


@numba.njit  # type: ignore[untyped-decorator]
def _run(function: int, arguments: tuple[int, ...]) -> None:
    call(function, arguments)


class Kept:
    """Codes and scales of the keys or values of some tokens."""

    def __init__(self, count: int, size: int, seed: int = 0) -> None:
        made = np.random.default_rng(seed)
        self.codes = made.integers(-127, 128, (count, KV_HEADS, size)).astype(np.int8)
        scales = made.uniform(0.001, 0.1, (count, KV_HEADS)).astype(np.float32)
        self.scales = torch.from_numpy(scales).bfloat16()
        self.place: int = self.codes.ctypes.data + HEAD * size
        """Address of the codes that are read first."""

    @property
    def numbers(self) -> np.ndarray:
        """Return what the read head holds, float64 ``[count, size]``."""
        found: np.ndarray = self.codes[:, HEAD] * self.scales[:, HEAD, None].double().numpy()
        return found

    def arguments(self, size: int) -> tuple[int, ...]:
        """Return the addresses and strides, in bytes, that kernels read by."""
        return (
            self.place,
            KV_HEADS * size,
            self.scales.data_ptr() + 2 * HEAD,
            2 * KV_HEADS,
            0,
            len(self.codes),
            self.place,
        )


def _scores(queries: np.ndarray, kept: Kept) -> np.ndarray:
    num, size = queries.shape
    out = np.full((num, POSITIONS), np.nan, np.float32)
    scratch = np.full(2 * POSITIONS * size, np.nan, np.float32)
    prepare, score, _ = row_functions(INT8, INT8, size)
    ready = queries
    if prepare:
        ready = np.full(ready_bytes(num, size), 255, np.uint8)
        _run(prepare.address, (queries.ctypes.data, 1, num, size, ready.ctypes.data))
    mine: Any = (ready.ctypes.data, num, size, *kept.arguments(size))
    _run(score.address, (*mine, out.ctypes.data, scratch.ctypes.data))
    return out[:, : len(kept.codes)]


def _sums(weights: np.ndarray, kept: Kept, before: np.ndarray) -> np.ndarray:
    num, size = len(weights), before.shape[1] - 2
    padded = np.zeros((num, POSITIONS), np.float32)
    padded[:, : weights.shape[1]] = weights
    out = before.copy()
    scratch = np.full(2 * POSITIONS * size, np.nan, np.float32)
    mine: Any = (padded.ctypes.data, num, size, *kept.arguments(size))
    add = row_functions(INT8, INT8, size)[-1]
    _run(add.address, (*mine, out.ctypes.data, scratch.ctypes.data))
    return out


SHAPES = pytest.mark.parametrize(
    ("num", "size", "count"),
    [
        (num, size, count)
        for num in (1, 2, 3, 4, 8)
        for size in (16, 32, 64, 96, 128)
        for count in (1, 3, 17, 64)
    ],
)


@SHAPES
def test_scores_are_products_of_queries_and_keys(num: int, size: int, count: int) -> None:
    queries = np.random.default_rng(1).normal(size=(num, size)).astype(np.float32)
    queries *= np.geomspace(1e-3, 1e3, num, dtype=np.float32)[:, None]
    kept = Kept(count, size)
    expected = queries.astype(np.float64) @ kept.numbers.T
    # A query's channels are rounded to a 32,767th of its largest: off by half of that, at most.
    most = np.abs(queries).max(1)[:, None] / 65534 * np.abs(kept.numbers).sum(1)
    assert (np.abs(_scores(queries, kept) - expected) <= most + 1e-5 * np.abs(expected)).all()


@SHAPES
def test_sums_are_weighted_values(num: int, size: int, count: int) -> None:
    made = np.random.default_rng(2)
    weights = np.exp(-8 * made.random((num, count))).astype(np.float32)
    before = made.normal(size=(num, size + 2)).astype(np.float32)
    kept = Kept(count, size)
    found = _sums(weights, kept, before)
    expected = before[:, :size] + weights.astype(np.float64) @ kept.numbers
    scaled = weights * kept.scales[:, HEAD].float().numpy()
    most = scaled.max(1)[:, None] / 131070 * np.abs(kept.codes[:, HEAD].astype(np.int64)).sum(0)
    assert (np.abs(found[:, :size] - expected) <= most + 1e-6 * (1 + np.abs(expected))).all()
    assert (found[:, size:] == before[:, size:]).all()


def test_what_lies_behind_the_last_token_is_not_read_into_it() -> None:
    queries = np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)
    some, more = Kept(21, 64), Kept(64, 64)
    some.codes[:], some.scales[:] = more.codes[:21], more.scales[:21]
    assert np.array_equal(_scores(queries, some), _scores(queries, more)[:, :21])


@pytest.mark.parametrize("count", [1, 3, 17])
def test_nothing_is_read_behind_the_last_token(count: int) -> None:
    """It may be the last of a page: a process ends that reads on."""
    made = multiprocessing.get_context("fork").Process(target=_read_to_the_edge, args=(count,))
    made.start()
    made.join()
    assert made.exitcode == 0


def _read_to_the_edge(count: int) -> None:
    """Read codes right behind which memory begins that cannot be read."""
    kept = Kept(count, 64)
    expected = _scores(QUERIES, kept), _sums(WEIGHTS[:, :count], kept, BEFORE)
    room = mmap.mmap(-1, 64 * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    edge = 63 * mmap.PAGESIZE
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + edge), mmap.PAGESIZE, 0):
        raise OSError("mprotect")
    readable = kept.codes.nbytes - (KV_HEADS - 1 - HEAD) * 64
    room[edge - readable : edge] = kept.codes.tobytes()[:readable]
    kept.place += start + edge - readable - kept.codes.ctypes.data
    found = _scores(QUERIES, kept), _sums(WEIGHTS[:, :count], kept, BEFORE)
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("size", [512, 544])
@pytest.mark.parametrize("code", [-128, 127])
def test_the_largest_products_fit(size: int, code: int) -> None:
    """Every channel, code and weight at its limit; beyond 512 channels int32 would overflow."""
    kept = Kept(64, size)
    kept.codes[:] = code
    expected = np.full((3, 64), size * code) * kept.scales[:, HEAD].double().numpy()
    found = _scores(np.ones((3, size), np.float32), kept)
    assert np.allclose(found, expected, rtol=1e-5, atol=0)
    kept.scales[:] = 0.5
    sums = _sums(np.ones((3, 64), np.float32), kept, np.zeros((3, size + 2), np.float32))
    assert np.allclose(sums[:, :size], 32.0 * code, rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_sound_is_made_of_what_is_no_number(value: float) -> None:
    kept = Kept(64, 64)
    queries = np.ones((3, 64), np.float32)
    queries[1, 5] = value
    found = _scores(queries, kept)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(found[[0, 2]]).all()
    kept.scales[7, HEAD] = float("nan")
    assert np.isnan(_scores(np.ones((3, 64), np.float32), kept)[:, 7]).all()
    weights = np.ones((3, 64), np.float32)
    assert np.isnan(_sums(weights, kept, np.zeros((3, 66), np.float32))[:, :64]).all()


def test_queries_and_weights_of_nothing_give_nothing() -> None:
    kept = Kept(64, 64)
    assert (_scores(np.zeros((2, 64), np.float32), kept) == 0).all()
    before = np.ones((2, 66), np.float32)
    assert np.array_equal(_sums(np.zeros((2, 64), np.float32), kept, before), before)
