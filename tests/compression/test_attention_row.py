"""A single query's attention, all heads of a task, against softmax and sums in float64."""

from typing import Any

import numba
import numpy as np
import pytest
import torch

from compression.kernels.attention_row import attend_row, scratch_bytes
from compression.kernels.attention_row_functions import row_functions
from compression.kernels.attention_tiles import INT8, PLAIN

TOKENS, KV_HEADS = 330, 3
_GUARD = 77


class Kept:
    """Keys or values ``[tokens, heads, size]`` as a cache holds them."""

    def __init__(self, kind: int, size: int, seed: int) -> None:
        torch.manual_seed(seed)
        numbers = torch.randn(TOKENS, KV_HEADS, size)
        self.scales = torch.rand(TOKENS, KV_HEADS).mul(0.02).add(0.005).bfloat16()
        if kind == INT8:
            self.codes = (numbers * 40).round().clamp(-127, 127).to(torch.int8)
            self.numbers = self.codes.double() * self.scales.double()[..., None]
        else:
            self.codes = numbers.bfloat16()
            self.numbers = self.codes.double()
        stride = self.codes.element_size() * size
        self.layout = [kind, KV_HEADS * stride, stride, KV_HEADS, 1, 0]
        self.places = np.array([self.codes.data_ptr(), self.scales.data_ptr()], np.int64)


@numba.njit  # type: ignore[untyped-decorator]
def _attend(*arguments: Any) -> None:
    attend_row(*arguments)


@pytest.mark.parametrize("kinds", [(PLAIN, PLAIN), (INT8, INT8), (INT8, PLAIN), (PLAIN, INT8)])
@pytest.mark.parametrize(
    ("size", "per_head"), [(8, 1), (24, 2), (32, 3), (64, 3), (64, 5), (96, 4)]
)
@pytest.mark.parametrize(
    ("head", "heads", "window", "start", "stop"),
    [(0, 3, 0, 64, 320), (1, 2, 100, 192, 330), (2, 1, 0, 0, 65), (0, 3, 20, 0, 192)],
)
def test_every_head_of_a_task_is_softmax_and_sums(
    kinds: tuple[int, int], size: int, per_head: int, head: int, heads: int, window: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Whatever is kept how; and no more memory is written than is asked for."""
    keys, values = Kept(kinds[0], size, 1), Kept(kinds[1], size, 2)
    queries = torch.randn(heads * per_head, size, generator=torch.Generator().manual_seed(3))
    queries = (queries / size**0.5).contiguous()
    functions = [each.address if each else 0 for each in row_functions(*kinds, size)]
    room = scratch_bytes(size, heads, per_head)
    scratch = np.full(room + 128, _GUARD, np.uint8)
    aligned = -scratch.ctypes.data % 64
    out = np.full((heads * per_head, size + 2), np.nan, np.float32)
    position = 329
    _attend(
        queries.data_ptr(), per_head, size, position, window, start, stop, keys.places,
        values.places, head, heads, np.array(keys.layout + values.layout, np.int64),
        np.array(functions, np.int64), out.ctypes.data, scratch.ctypes.data + aligned,
    )  # fmt: skip
    assert (scratch[aligned + room :] == _GUARD).all()
    first = max(start, position - window + 1) if window else start
    if first >= stop:
        assert (out[:, :size] == 0).all()
        assert (out[:, size + 1] == 0).all()
        return
    found = torch.from_numpy(out).double()
    for index in range(heads * per_head):
        own = head + index // per_head
        scores = keys.numbers[first:stop, own] @ queries[index].double()
        weights = torch.exp(scores - found[index, size])
        assert float(found[index, size]) == pytest.approx(float(scores.max()), abs=2e-3)
        assert float(found[index, size + 1]) == pytest.approx(float(weights.sum()), rel=2e-3)
        expected = weights @ values.numbers[first:stop, own]
        error = (found[index, :size] - expected).norm() / expected.norm()
        assert float(error) < 2e-3
