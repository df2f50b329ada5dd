"""Attention on the processor's matrix unit: what softmax and sums in float64 give."""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.kernels import matrix_unit
from compression.kernels.attention_on_unit import ATTEND_ON_UNIT, scratch_bytes
from compression.kernels.attention_tiles import INT8, PLAIN

pytestmark = pytest.mark.skipif(
    not matrix_unit.permission(), reason="this processor has no matrix unit, or it is not granted"
)
KV_HEADS = 3


@dataclass
class Kept:
    """Keys or values of one layer, and what they mean."""

    kind: int
    codes: Tensor
    """``[tokens, kv_heads, size]``."""
    scales: Tensor
    """bf16 ``[tokens, kv_heads]``."""

    @property
    def means(self) -> Tensor:
        """Return float64 ``[tokens, kv_heads, size]``."""
        codes = self.codes.double()
        return codes if self.kind == PLAIN else codes * self.scales.double()[..., None]

    def layout(self) -> list[int]:
        head = self.codes[0, 0].nbytes
        return [self.kind, KV_HEADS * head, head, KV_HEADS, 1, 0]


def keep(kind: int, tokens: int, size: int) -> Kept:
    shape = (tokens, KV_HEADS, size)
    scales = (0.01 + 0.02 * torch.rand(shape[:2])).to(torch.bfloat16)
    if kind == PLAIN:
        return Kept(kind, torch.randn(shape).to(torch.bfloat16), scales)
    return Kept(kind, torch.randint(-127, 128, shape, dtype=torch.int8), scales)


def attend(
    queries: Tensor, keys: Kept, values: Kept, head: int, position: int, window: int, start: int,
    stop: int,
) -> Tensor:  # fmt: skip
    """Return float32 ``[rows, per_head, size + 2]`` of queries ``[rows, per_head, size]``."""
    rows, per_head, size = queries.shape
    parts = (keys.codes, keys.scales, values.codes, values.scales)
    caches = np.array([part.data_ptr() for part in parts], np.int64)
    layout = np.array([*keys.layout(), *values.layout()], np.int64)
    out = torch.full((rows, per_head, size + 2), torch.nan)
    scratch = torch.full((scratch_bytes(size, rows * per_head) + 64,), 0xFF, dtype=torch.uint8)
    arguments = (
        queries.data_ptr(), queries[0].nbytes, rows, per_head, size, position, window, start, stop,
        caches.ctypes.data, layout.ctypes.data, head, out.data_ptr(), out[0].nbytes,
        scratch.data_ptr() + -scratch.data_ptr() % 64,
    )  # fmt: skip
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(arguments))(ATTEND_ON_UNIT.address)(*arguments)
    return out


def exactly(
    queries: Tensor, keys: Kept, values: Kept, head: int, position: int, window: int, start: int,
    stop: int,
) -> Tensor:  # fmt: skip
    """Return the same in float64: ``[rows, per_head, size]``, NaN where a row sees nothing."""
    places = torch.arange(start, stop)
    at = position + torch.arange(len(queries))
    seen = (places <= at[:, None]) & (places > at[:, None] - (window or 1 << 40))
    scores = queries.double() @ keys.means[start:stop, head].T
    weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
    return weights @ values.means[start:stop, head]


@pytest.mark.parametrize("kinds", [(PLAIN, PLAIN), (INT8, INT8), (INT8, PLAIN), (PLAIN, INT8)])
@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize(
    ("rows", "per_head", "position", "window", "start", "stop"),
    [
        (1, 1, 0, 0, 0, 1),  # the first token
        (2, 3, 189, 0, 0, 191),  # a few queries: no whole tile
        (2, 8, 254, 0, 128, 256),  # one tile
        (2, 9, 100, 0, 0, 102),  # a tile and a bit
        (32, 3, 0, 0, 0, 32),  # a prompt: rows see different ends
        (30, 5, 100, 0, 64, 130),  # and its next piece, no whole tiles
        (32, 3, 150, 40, 64, 182),  # with a window: rows see different beginnings, too
        (32, 3, 130, 20, 0, 162),  # some see nothing of the first block, some nothing of the last
    ],
)  # fmt: skip
def test_it_is_softmax_and_sums(
    kinds: tuple[int, int], size: int, rows: int, per_head: int, position: int, window: int,
    start: int, stop: int,
) -> None:  # fmt: skip
    """Few queries and many, windows, ends within tiles and blocks, every mix of formats."""
    torch.manual_seed(size + rows)
    keys, values = keep(kinds[0], 256, size), keep(kinds[1], 256, size)
    queries = torch.randn(rows, per_head, size) / size**0.5 * (3 if kinds[0] == PLAIN else 1)
    head = KV_HEADS - 1
    found = attend(queries, keys, values, head, position, window, start, stop).double()
    result = found[..., :size] / found[..., size + 1 :]
    expected = exactly(queries, keys, values, head, position, window, start, stop)
    error = (result - expected).norm(dim=-1) / expected.norm(dim=-1)
    # Weights and queries are sums of two bf16: within 2⁻¹⁷ of what they are.
    assert float(error.max()) < 2e-4


def test_rows_that_see_nothing_weigh_nothing() -> None:
    """What a task holds before a row's window adds neither sums nor weights."""
    keys, values = keep(PLAIN, 128, 64), keep(PLAIN, 128, 64)
    found = attend(torch.randn(2, 3, 64), keys, values, 0, 100, 10, 0, 64)
    assert torch.equal(found[..., :64], torch.zeros(2, 3, 64))
    assert torch.equal(found[..., 65], torch.zeros(2, 3))


@pytest.mark.parametrize("rows", [2, 20])
def test_what_is_no_number_is_seen(rows: int) -> None:
    """NaN among queries, keys or values reaches the rows that see it; others keep their weights."""
    keys, values = keep(PLAIN, 64, 64), keep(PLAIN, 64, 64)
    queries = torch.randn(rows, 1, 64)
    last = 40 + rows - 1
    for spoiled in (keys.codes, values.codes):
        kept = spoiled[last, 0, 5].clone()
        spoiled[last, 0, 5] = torch.nan
        found = attend(queries, keys, values, 0, 40, 0, 0, last + 1)
        assert not found[-1].isfinite().all()
        assert found[:-1, :, 65].isfinite().all()
        spoiled[last, 0, 5] = kept
    queries[0, 0, 7] = torch.nan
    found = attend(queries, keys, values, 0, 40, 0, 0, last + 1)
    assert not found[0].isfinite().all()
    assert found[1:].isfinite().all()
