"""Compiled kernels: what they round, keep and share out, against PyTorch and numpy."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from compression.kernels import atomics, fields
from compression.kernels.attention_tiles import INT4, INT8, PLAIN, POSITIONS
from compression.kernels.compiling import compiled, linked
from compression.kernels.exponential import exponential
from compression.kernels.kv import keep, recall, rotate
from compression.kernels.memory import floats, longs, narrow
from compression.kernels.product import LONGEST
from compression.kernels.softmax import weigh
from compression.kernels.team import MOST_OPERATIONS, _take, team
from compression.kv.codec import KvCodec
from compression.kv.hadamard import hadamard
from compression.kv.int4 import Int4Codec
from compression.kv.int8 import Int8Codec
from compression.kv.plain import PlainCodec
from compression.packed import (
    Bf16Linear,
    Int4Linear,
    Int8Linear,
    PackedLinear,
    make_grouped_linear,
)
from compression.packed.arena import gather
from compression.schemes import Int4, Int5, Int8, KvInt4
from compression.weights.codes import Codes
from compression.weights.quantizer import quantize


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return reproducible normal values."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@compiled
def _exponentials(x: int, out: int, count: int) -> None:
    source, target = floats(x, count), floats(out, count)
    for index in range(count):
        target[index] = exponential(source[index])


@numba.njit
def _weigh(scores: int, hidden: int, seen: int, result: np.ndarray) -> None:
    weigh(scores, hidden, seen, len(result) - 2, result)


def test_scores_become_the_weights_of_a_softmax() -> None:
    """Near the largest and far from it; what is hidden or behind the last weighs nothing."""
    scores = np.linspace(-100, 3, POSITIONS, dtype=np.float32)
    weights, result = scores.copy(), np.array([1, 2, -1e30, 0], np.float32)
    _weigh(weights.ctypes.data, 5, 60, result)
    expected = np.exp((scores - scores[59]).astype(np.float64))
    expected[:5] = expected[60:] = 0
    assert np.allclose(weights, expected, rtol=2.0**-19, atol=2.0**-96)
    assert (weights[[0, 4, 60, 63]] == 0).all()
    assert np.allclose(result[3], expected.sum(), rtol=1e-6)
    more = np.full(POSITIONS, scores[59] + 1, np.float32)
    _weigh(more.ctypes.data, 0, POSITIONS, result)
    assert np.allclose(result[3], POSITIONS + expected.sum() / np.e, rtol=1e-6)
    more[7] = np.nan
    _weigh(more.ctypes.data, 0, POSITIONS, result)
    assert np.isnan(result[3])


def test_exponential_is_that_of_the_library() -> None:
    """Over its whole range the error is below 3e-7, and what is no number stays none."""
    x = np.linspace(-90, 88, 20001, dtype=np.float32)
    out = np.empty_like(x)
    _exponentials(x.ctypes.data, out.ctypes.data, len(x))
    expected = np.exp(x.astype(np.float64))
    seen = x >= -87
    assert np.max(np.abs(out[seen] / expected[seen] - 1)) < 3e-7
    assert np.all(out[x < -87.4] == 0)
    odd = np.array([np.nan, np.inf, -np.inf], np.float32)
    _exponentials(odd.ctypes.data, odd.ctypes.data, 3)
    assert np.all(np.isnan(odd))


def test_bf16_is_rounded_as_torch_rounds_it() -> None:
    """Ties go to the even neighbour, as in PyTorch."""
    bits = torch.arange(0x3F80_0000, 0x3F80_0000 + 0x4_0000, 0x1000, dtype=torch.int32)
    values = bits.view(torch.float32)
    expected = values.to(torch.bfloat16).view(torch.int16).tolist()
    assert [int(narrow(value)) for value in values.tolist()] == expected


@pytest.mark.parametrize("size", [8, 24, 64, 128])
def test_heads_are_rotated_by_the_hadamard_matrix(size: int) -> None:
    """The butterflies equal the product with the matrix of the codecs."""
    x = random(size)
    turned = x.clone()
    rotate(turned.data_ptr(), size, size & -size)
    assert torch.allclose(turned, x @ hadamard(size), atol=1e-5)


CODECS: list[tuple[int, KvCodec, int]] = [
    (PLAIN, PlainCodec(64), 0),
    (INT8, Int8Codec(64), 0),
    (INT4, Int4Codec(KvInt4(group_size=32), 64), 2),
    (INT4, Int4Codec(KvInt4(group_size=64), 48), 1),
]


@pytest.mark.parametrize(("kind", "codec", "groups"), CODECS)
@pytest.mark.parametrize("values", ["normal", "zeros", "one spike", "tiny"])
def test_a_head_is_kept_as_its_codec_keeps_it(
    kind: int, codec: KvCodec, groups: int, values: str
) -> None:
    """The same bytes as PyTorch's operations make, and the same numbers back."""
    size = codec.head_dim
    x = {"normal": random(size), "zeros": torch.zeros(size), "tiny": random(size) * 1e-30}.get(
        values, random(size)
    )
    if values == "one spike":
        x[7] = -300.0
    expected = codec.encode(x.view(1, 1, size))
    place = torch.zeros(4 * size, dtype=torch.uint8)
    scales = torch.zeros(2 * max(1, groups), dtype=torch.bfloat16)
    keep(kind, x.data_ptr(), size, place.data_ptr(), scales.data_ptr(), groups)
    kept = expected[0].view(torch.uint8).flatten()
    assert torch.equal(place[: len(kept)], kept)
    if len(expected) > 1:
        assert torch.equal(scales[: expected[1].numel()], expected[1].flatten())
    out = torch.empty(size)
    recall(kind, place.data_ptr(), scales.data_ptr(), groups, size, out.data_ptr())
    assert torch.allclose(out, codec.decode(expected, torch.float32).flatten(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("kind", "codec", "groups"), CODECS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 5, 47])
def test_a_head_that_is_no_number_is_kept_as_none(
    kind: int, codec: KvCodec, groups: int, broken: float, place: int
) -> None:
    """A cache that rounds does not make sound numbers of NaN or infinity."""
    size = codec.head_dim
    x = random(size)
    x[place] = broken
    kept = torch.zeros(4 * size, dtype=torch.uint8)
    scales = torch.zeros(2 * max(1, groups), dtype=torch.bfloat16)
    keep(kind, x.data_ptr(), size, kept.data_ptr(), scales.data_ptr(), groups)
    out = torch.empty(size)
    recall(kind, kept.data_ptr(), scales.data_ptr(), groups, size, out.data_ptr())
    assert not bool(torch.isfinite(out[place]))


def test_inputs_of_another_width_are_refused() -> None:
    """Nothing is read beyond inputs that are too narrow."""
    layer = Int8Linear(quantize(random(8, 64), Int8()), None)
    with pytest.raises(ValueError, match="inputs of 16 columns for a weight of 64"):
        layer(random(1, 16))


def test_a_program_that_does_not_fit_is_refused() -> None:
    """More operations than there are counters are an error, not a write beyond them."""
    program = np.zeros((MOST_OPERATIONS + 1, fields.FIELDS), np.int64)
    with pytest.raises(ValueError, match="16385 operations: 16384 fit"):
        team(1).run(program, 1)


@pytest.mark.parametrize("kind", ["int8", "int5", "int4", "bf16"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_gives_none(kind: str, broken: float) -> None:
    """Rounding does not turn NaN or infinity into sound numbers, nor touch other rows."""
    weight = random(40, 64)
    layer: PackedLinear
    if kind == "bf16":
        layer = Bf16Linear(weight, None)
    elif kind == "int8":
        layer = Int8Linear(quantize(weight, Int8()), None)
    else:
        scheme = Int5() if kind == "int5" else Int4()
        layer = make_grouped_linear(quantize(weight, scheme), None)
    x = random(12, 64)
    sound = layer(x)
    x[2, 5] = broken
    result = layer(x)
    assert not bool(torch.isfinite(result[2]).any())
    others = [0, 1, *range(3, 12)]
    assert torch.equal(result[others], sound[others])


def test_long_rows_do_not_overflow() -> None:
    """The largest sums there are come out whole, beyond the columns that 32 bits could hold."""
    columns = 2 * LONGEST + 80
    codes = Codes(
        codes=torch.full((3, columns), -127, dtype=torch.int8),
        scales=torch.ones(3, 1, dtype=torch.bfloat16),
        zeros=None,
        bits=8,
    )
    x = torch.full((5, columns), -2.5)
    expected = torch.full((5, 3), 127 * 2.5 * columns)
    assert torch.allclose(Int8Linear(codes, None)(x), expected, rtol=1e-5)


@linked(6)
def _count(operation, chunk, rows, row_table, task_table, scratch):
    atomics.add(row_table + 8 * chunk, 1)


_PATIENCE = 50_000_000
"""Turns of waiting, each a word with the system: at least ten seconds."""


@linked(6)
def _meet(operation, chunk, rows, row_table, task_table, scratch):
    """Keep when a chunk was begun; the first two wait for each other, so many turns at most."""
    begun, turns = row_table, 0
    atomics.store(row_table + 8 * (1 + chunk), atomics.add(begun, 1))
    while atomics.load(begun) < 2 and turns < _PATIENCE:
        turns += 1
        atomics.sched_yield()


@linked(6)
def _wait_for_all(operation, chunk, rows, row_table, task_table, scratch):
    """Count a chunk; the first waits until all others are done, so many turns at most."""
    turns = 0
    while chunk == 0 and atomics.load(row_table) < rows and turns < _PATIENCE:
        turns += 1
        atomics.sched_yield()
    atomics.add(row_table, 1)
    if chunk == 0:
        atomics.store(row_table + 8, turns)


def test_each_thread_begins_with_a_part_of_its_own() -> None:
    """Two threads begin at the first chunk and at half of them, so that each reads on."""
    program = np.zeros((1, fields.FIELDS), np.int64)
    program[:, fields.FUNCTION] = _meet.address
    program[:, fields.PIECES] = 37
    for _ in range(20):
        order = np.zeros((38, 1), np.int64)
        team(2).run(program, 1, order)
        assert order[0] == 37
        assert {*np.argsort(order[1:, 0])[:2].tolist()} == {0, 18}


def test_what_one_thread_leaves_another_takes() -> None:
    """A thread that is held up in a chunk holds up no other chunk of its part."""
    program = np.zeros((1, fields.FIELDS), np.int64)
    program[:, fields.FUNCTION] = _wait_for_all.address
    program[:, fields.PIECES] = 37
    done = np.zeros((2, 1), np.int64)
    team(2).run(program, 36, done)
    assert done[0] == 37
    assert done[1] < _PATIENCE


_PLACE, _BEFORE = 1, 2
"""Fields of :func:`_follow`."""


@linked(6)
def _follow(operation, chunk, rows, row_table, task_table, scratch):
    """Count a chunk of an operation, and as a fault whatever is not done of the one before.

    The table's numbers are faults, then done chunks of each operation. An operation's are its
    place and how many chunks the one before has.
    """
    o = longs(operation, fields.FIELDS)
    if o[_PLACE] > 0 and atomics.load(row_table + 8 * o[_PLACE]) != o[_BEFORE]:
        atomics.add(row_table, 1)
    for _ in range(500 if chunk % 5 == 0 else 0):
        atomics.pause()
    atomics.add(row_table + 8 * (1 + o[_PLACE]), 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 11])
def test_operations_of_any_program_follow_each_other(threads: int) -> None:
    """None begins before the one before has ended, and none is of another program."""
    workers, choice = team(threads), np.random.default_rng(threads)
    for _ in range(400):
        totals = choice.choice([1, 2, 3, 5, 11, 37], choice.choice([1, 2, 3, 7, 20]))
        program = np.zeros((len(totals), fields.FIELDS), np.int64)
        program[:, fields.FUNCTION] = _follow.address
        program[:, fields.PIECES] = totals
        program[:, _PLACE] = range(len(totals))
        program[1:, _BEFORE] = totals[:-1]
        found = np.zeros((1 + len(totals), 1), np.int64)
        workers.run(program, 1, found)
        assert found.flatten().tolist() == [0, *totals]


def test_chunks_are_taken_of_one_epoch_alone() -> None:
    """Whoever comes late takes nothing of what is there for others; a part may be empty."""
    counters = np.zeros(8 * 9, np.int64)
    place = counters.ctypes.data

    def take(epoch: int, own: int, ranges: int = 2) -> int:
        return int(_take(place, epoch, ranges, own))

    def publish(epoch: int, total: int) -> None:
        counters[:2] = total, epoch << 24 | total

    publish(5, 3)
    assert take(4, 0) == take(6, 0) == -1
    assert [take(5, 1), take(5, 0), take(5, 1), take(5, 1)] == [1, 0, 2, -1]
    assert take(5, 0) == -1
    publish(6, 9)
    assert take(5, 0) == take(5, 1) == -1
    assert [take(6, 0) for _ in range(10)] == [*range(9), -1]
    publish(7, 1)
    assert [take(7, 0), take(7, 0)] == [0, -1]
    publish(8, 2)
    counters[8] = 9 << 24 | 1  # the next program has begun since the total was read
    assert take(8, 0) == -1


@pytest.mark.parametrize(("threads", "chunks", "runs"), [(4, 37, 300), (4, 3, 300), (11, 37, 60)])
def test_every_chunk_is_taken_once(threads: int, chunks: int, runs: int) -> None:
    """However many threads there are and whatever they do, no chunk is lost or done twice."""
    workers = team(threads)
    program = np.zeros((5, fields.FIELDS), np.int64)
    program[:, fields.FUNCTION] = _count.address
    program[:, fields.PIECES] = chunks
    counts = np.zeros((chunks, 1), np.int64)
    for _ in range(runs):
        workers.run(program, 1, counts)
    assert counts.flatten().tolist() == [5 * runs] * chunks


def test_callers_take_turns() -> None:
    """Several threads may call a team at once; each gets its own product."""
    layer = Int8Linear(quantize(random(300, 96), Int8()), None)
    inputs = [random(7, 96, seed=seed) for seed in range(4)]
    expected = [layer(x) for x in inputs]
    found: dict[tuple[int, int], torch.Tensor] = {}

    def work(index: int) -> None:
        for turn in range(30):
            found[index, turn] = layer(inputs[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert all(torch.equal(result, expected[index]) for (index, _), result in found.items())


@pytest.mark.parametrize("rows", [9, 20])
def test_threads_change_nothing(rows: int) -> None:
    """One thread and three give the same bits: a product's sums are never split between them."""
    layer = Int4Linear(quantize(random(500, 192), Int4()), None)
    x = random(rows, 192)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(layer(x))
            assert team(threads).threads == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_gathered_weights_are_the_same_in_one_place() -> None:
    """Moving them changes no product, no byte count, and leaves them close together."""
    layers: list[PackedLinear] = [
        Int8Linear(quantize(random(2000, 1000), Int8()), random(2000).to(torch.bfloat16)),
        Int4Linear(quantize(random(600, 1024), Int4()), None),
        Bf16Linear(random(400, 1000), None),
    ]
    inputs = [random(3, layer.columns) for layer in layers]
    before = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    sizes = [layer.weight_bytes for layer in layers]
    gather(layers)
    for layer, x, expected, size in zip(layers, inputs, before, sizes, strict=True):
        assert torch.equal(layer(x), expected)
        assert layer.weight_bytes == size
    tensors = [each for layer in layers for each in (*layer.buffers(), *layer.parameters())]
    first = min(each.data_ptr() for each in tensors)
    last = max(each.data_ptr() + each.nbytes for each in tensors)
    assert last - first < sum(sizes) + 64 * len(tensors)


def test_machine_code_is_kept(tmp_path: Path) -> None:
    """A second process reads what the first one compiled."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    load = (
        "from compression.kernels import row_operations, team\n"
        "team.compile_team()\n"
        "row_operations.NORM.compile()\n"
    )
    seen = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", load], env=environment, check=True)
        seen.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb?")})
    assert seen[0]
    assert seen[0] == seen[1]


def test_what_two_processes_compiled_can_be_used_by_a_third(tmp_path: Path) -> None:
    """Functions of one factory have names of their own: the linker takes equal names for one."""
    # numba puts a set of options into names, whose order changes from process to process.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "0"}
    for kind in (PLAIN, INT8):
        load = f"from compression.kernels.attention_vectors import SCORES; SCORES[{kind}].compile()"
        subprocess.run([sys.executable, "-c", load], env=environment, check=True)
    use = (
        "import numpy as np\n"
        "from ctypes import CFUNCTYPE, c_longlong\n"
        "from compression.kernels.attention_vectors import SCORES\n"
        "from compression.kernels.attention_tiles import INT8, PLAIN\n"
        "queries = np.arange(8, dtype=np.float32)\n"
        "plain = np.full((4, 8), 0x4000, np.uint16)\n"  # 2.0
        "codes, scales = np.full((4, 8), 3, np.int8), np.full(4, 0x3f80, np.uint16)\n"  # 1.0
        "for kind, keys, stride in ((PLAIN, plain, 16), (INT8, codes, 8)):\n"
        "    out = np.zeros(64, np.float32)\n"
        "    score = CFUNCTYPE(None, *[c_longlong] * 11)(SCORES[kind].address)\n"
        "    places = [each.ctypes.data for each in (queries, keys, scales, out)]\n"
        "    score(places[0], 1, 8, places[1], stride, places[2], 2, 8, 4, places[1], places[3])\n"
        "    print(*out[:4])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", use], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "56.0 56.0 56.0 56.0\n84.0 84.0 84.0 84.0\n"


def test_without_a_place_to_keep_it_machine_code_is_made_each_time() -> None:
    """A directory that cannot be written is no reason not to serve."""
    environment = os.environ | {"NUMBA_CACHE_DIR": "/proc/kernels"}
    load = "from compression.kernels.row_operations import NORM; print(NORM.address > 0)"
    done = subprocess.run(
        [sys.executable, "-c", load], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "True\n"
