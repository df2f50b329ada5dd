"""A step as one compiled program equals the same step of PyTorch's operations."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compression.architecture import parse_architecture, read_config
from compression.errors import CompressionError
from compression.events import ignore
from compression.kernels import matrix_unit
from compression.kernels.attention_on_unit import ATTEND_ON_UNIT
from compression.packed.linear import NEVER
from compression.prepare import build_to
from gateway.engine.cache import Cache
from gateway.engine.compiled import step
from gateway.engine.compiled.tables import Span, cut, positions, row_table, task_table
from gateway.engine.runner import Runner, load_runner
from tests.checkpoints import CONFIGS, make_tiny_checkpoint

IDS = [(7 * index * index + 3 * index) % 300 + 1 for index in range(300)]
RECIPE = """
weights: {{scheme: {weights}}}
kv_cache: {{key: {{scheme: {key}}}, value: {{scheme: {value}}}}}
calibration: {{tokens: 512}}
"""


def artifact(tmp_path: Path, family: str, weights: str, key: str, value: str) -> Runner:
    """Build and load a tiny model, one thread."""
    source = make_tiny_checkpoint(tmp_path / "source", family=family)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(weights=weights, key=key, value=value))
    build_to(str(source), str(recipe), None, tmp_path / "out", ignore)
    return load_runner(tmp_path / "out", threads=1, max_model_len=None)


def take(runner: Runner, *, compiled: bool) -> None:
    """Let a model run one way or the other, both in float32."""
    for linear in runner.decoder.linears:
        linear.dense_from, linear.dense_dtype = NEVER if compiled else 1, torch.float32


@torch.inference_mode()
def read(runner: Runner, steps: list[int]) -> tuple[torch.Tensor, Cache]:
    """Return the hidden states of a text that is read in such steps, and its cache."""
    cache, found = runner.new_cache(sum(steps)), []
    for size in steps:
        ids = IDS[cache.length : cache.length + size]
        found.append(runner.decoder.hidden([(cache, ids)]).to(torch.float32))
    return torch.cat(found), cache


def relative(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest error of a row, against that row's norm."""
    return float(((result - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@pytest.mark.parametrize("family", list(CONFIGS))
@pytest.mark.parametrize(
    ("weights", "key", "value", "bound"),
    [
        # A key or value near the edge between two bf16 numbers or codes may fall to either side,
        # more often where a matrix unit takes inputs as sums of two bf16.
        ("none", "none", "none", 5e-3),
        ("int8", "none", "none", 0.01),
        ("int4", "int8", "int8", 0.05),
        ("int5", "none", "none", 0.01),
        ("int8", "int8", "int4", 0.3),
        ("none", "none", "int8", 0.05),
    ],
)
def test_it_equals_the_operations_it_stands_for(
    tmp_path: Path, family: str, weights: str, key: str, value: str, bound: float
) -> None:
    """Long and short steps, single tokens over many positions, every family and format."""
    runner = artifact(tmp_path, family, weights, key, value)
    longest = min(200, runner.max_model_len)
    steps = [longest - 15, 1, 1, 10, 1, 1, 1]
    take(runner, compiled=True)
    result, _ = read(runner, steps)
    take(runner, compiled=False)
    expected, _ = read(runner, [longest])
    errors = (result - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(errors.max()) < bound
    assert float(errors.median()) < bound / 5


@pytest.mark.parametrize(
    ("weights", "bound"), [("int4", 0.0), ("int5", 0.0), ("int8", 0.0), ("none", 1e-4)]
)
def test_a_batch_equals_its_parts(tmp_path: Path, weights: str, bound: float) -> None:
    """Whatever else is in a step, a sequence's rows are the same, of integers bit for bit.

    It is long enough for several tasks. One alone is multiplied in vectors; so many may be on a
    matrix unit, where inputs of bf16 weights are within 2⁻¹⁷ of what they are in vectors.
    """
    runner = artifact(tmp_path, "llama", weights, "int8", "int8")
    take(runner, compiled=True)
    starts = range(0, 18)
    with torch.inference_mode():
        alone, batch = [], []
        for first in starts:
            caches = runner.new_cache(200), runner.new_cache(200)
            for cache in caches:
                runner.decoder.hidden([(cache, (4 * IDS)[first : first + 190])])
            alone.append(runner.decoder.hidden([(caches[0], [7 + first])]))
            batch.append((caches[1], [7 + first]))
        together = runner.decoder.hidden(batch)
    assert relative(together, torch.cat(alone)) <= bound


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("self_attn.o_proj.weight", lambda w: torch.cat([w, w])),
        ("self_attn.v_proj.weight", lambda w: w[:-8]),
        ("mlp.up_proj.weight", lambda w: w[:-8]),
        ("mlp.down_proj.weight", lambda w: torch.cat([w, w], dim=1)),
        ("mlp.down_proj.weight", lambda w: w[:-8]),
        ("input_layernorm.weight", lambda w: w[:-8]),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused(
    tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Kernels see addresses and no shapes, so shapes are compared before they run."""
    source = make_tiny_checkpoint(tmp_path / "source", family="llama")
    path, whole = source / "model.safetensors", f"model.layers.1.{name}"
    tensors = load_file(path)
    tensors[whole] = change(tensors[whole]).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CompressionError, match=name.removesuffix(".weight").rpartition(".")[2]):
        load_runner(source, threads=1, max_model_len=None)


@pytest.mark.skipif(not matrix_unit.permission(), reason="no matrix unit is granted here")
@pytest.mark.parametrize(
    ("size", "key", "is_taken"),
    [(32, "none", True), (32, "int8", True), (32, "int4", False), (16, "none", False)],
)
def test_several_rows_attend_on_the_matrix_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, key: str, is_taken: bool
) -> None:
    """Of heads and caches that it takes, in both layers."""
    asked: list[int] = []

    class OnUnit:
        @property
        def address(self) -> int:
            asked.append(ATTEND_ON_UNIT.address)
            return asked[-1]

    monkeypatch.setattr(step, "ATTEND_ON_UNIT", OnUnit())
    source = make_tiny_checkpoint(tmp_path / "source", head_dim=size)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(weights="int8", key=key, value="int8"))
    build_to(str(source), str(recipe), None, tmp_path / "out", ignore)
    runner = load_runner(tmp_path / "out", threads=1, max_model_len=None)
    take(runner, compiled=True)
    read(runner, [1])
    assert bool(asked) == is_taken
    assert len(asked) % 2 == 0


def test_tokens_beyond_a_cache_are_refused(tmp_path: Path) -> None:
    """Nothing is written behind the end of a cache, and the cache stays as it was."""
    runner = artifact(tmp_path, "llama", "int8", "none", "none")
    cache = runner.new_cache(8)
    with pytest.raises(ValueError, match="9 tokens do not fit into a cache of 8"):
        runner.forward([(cache, IDS[:9], 1)])
    assert cache.length == 0


def test_a_shape_that_needs_too_much_memory_of_its_own_is_left_to_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads have memory of one size; what would not fit runs the other way, and is right."""
    runner = artifact(tmp_path, "llama", "int8", "none", "none")
    take(runner, compiled=True)
    expected, _ = read(runner, [20, 1])
    monkeypatch.setattr("gateway.engine.compiled.step.SCRATCH_BYTES", 1000)
    again = load_runner(tmp_path / "out", threads=1, max_model_len=None)
    take(again, compiled=True)
    result, _ = read(again, [20, 1])
    assert 0 < relative(result, expected) < 0.05


def test_a_long_step_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than fit are run in pieces, in order, with the same result."""
    runner = artifact(tmp_path, "llama", "int8", "none", "none")
    take(runner, compiled=True)
    whole, _ = read(runner, [100])
    monkeypatch.setattr(step, "most_rows", lambda shape: 33)
    pieces, _ = read(runner, [100])
    # The last piece is one row, which vectors multiply, and a key may fall to the other side.
    assert relative(pieces, whole) < 1e-4


@pytest.mark.parametrize(
    ("width", "rows"), [(64, 512), (4096, 512), (8192, 256), (11008, 128), (100_000, 128)]
)
def test_wide_layers_take_fewer_rows(tmp_path: Path, width: int, rows: int) -> None:
    """What lies between operations takes no more memory for a large model than for a small one."""
    fields = read_config(make_tiny_checkpoint(tmp_path / "source"))
    shape = parse_architecture(fields | {"intermediate_size": width}, where="test")
    assert step.most_rows(shape) == rows


def test_what_no_kernel_reads_is_served_by_operations(tmp_path: Path) -> None:
    """An fp8 cache has no compiled kernel; the model answers all the same."""
    runner = artifact(tmp_path, "llama", "int8", "fp8", "fp8")
    take(runner, compiled=True)
    result, _ = read(runner, [20, 1, 1])
    take(runner, compiled=False)
    expected, _ = read(runner, [22])
    assert relative(result, expected) < 0.3


def test_pieces_of_a_step_keep_order_and_positions() -> None:
    """Each row comes once, at its position, with its own turns."""
    spans = [Span(1, 10, 5, 1000), Span(2, 0, 1, 2000), Span(3, 7, 9, 3000)]
    pieces = list(cut(spans, 4, head_dim=8))
    rows = [
        (span.addresses, span.start + index, span.turns + 32 * index)
        for piece in pieces
        for span in piece
        for index in range(span.count)
    ]
    expected = [
        (span.addresses, span.start + index, span.turns + 32 * index)
        for span in spans
        for index in range(span.count)
    ]
    assert rows == expected
    assert [sum(span.count for span in piece) for piece in pieces] == [4, 4, 4, 3]


def test_tasks_cover_what_rows_see() -> None:
    """Every row's positions are in its tasks, and each of its results has a task."""
    spans = [Span(1, 299, 1, 0), Span(2, 40, 20, 0)]
    parts = [positions(span, threads=2, window=0) for span in spans]
    rows, slots = row_table(spans, parts, head_dim=8)
    tasks = task_table(spans, parts, kv_heads=2, threads=2)
    filled = set()
    for first, count, head, heads, start, stop, slot in tasks.tolist():
        for row in range(first, first + count):
            filled |= {(int(rows[row, 3]) + slot, each) for each in range(head, head + heads)}
            assert start <= stop <= int(rows[first + count - 1, 1]) + 1
    assert filled == {(slot, head) for slot in range(slots) for head in range(2)}
    alone = [task for task in tasks.tolist() if task[0] == 0 and task[2] == 0]
    assert sum(stop - start for _, _, _, _, start, stop, _ in alone) == 300


@pytest.mark.parametrize(
    ("stop", "threads", "window", "expected"),
    [
        (100, 2, 0, [100]),
        (200, 2, 0, [128, 72]),  # not less than two blocks
        (580, 2, 0, [128, 128, 192, 132]),  # blocks are shared out evenly
        (2000, 2, 0, [512, 512, 512, 464]),
        (2000, 16, 0, 15 * [128] + [80]),
        (8000, 2, 0, [1984, 1984, 1984, 2048]),  # two for each thread, not more
        (8000, 2, 512, 4 * [128]),  # what nobody sees has no task
        (300, 2, 512, [128, 172]),
    ],
)
def test_threads_share_what_a_row_sees(
    stop: int, threads: int, window: int, expected: list[int]
) -> None:
    found = positions(Span(0, stop - 1, 1, 0), threads, window)
    assert sorted(end - start for start, end in found) == sorted(expected)
    assert found[-1][1] == stop
    assert found[0][0] <= (max(0, stop - window) if window else 0)
    assert all(left[1] == right[0] for left, right in itertools.pairwise(found))
    assert all(start % 64 == 0 for start, _ in found)


def test_many_sequences_of_a_row_are_one_program(tmp_path: Path) -> None:
    """Dense products that are faster for so many rows do not take attention's program away."""
    runner = artifact(tmp_path, "llama", "int8", "none", "none")
    for linear in runner.decoder.linears:
        linear.dense_from, linear.dense_dtype = 4, torch.bfloat16
    few = [read_ahead(runner, first) for first in range(3)]
    many = [read_ahead(runner, first) for first in range(6)]
    with torch.inference_mode():
        expected = runner.decoder.hidden([(cache, [7]) for cache in few])
        result = runner.decoder.hidden([(cache, [7]) for cache in many])
    assert torch.equal(result[:3], expected)


def read_ahead(runner: Runner, first: int) -> Cache:
    """Return the cache of a short text."""
    cache = runner.new_cache(40)
    with torch.inference_mode():
        runner.decoder.hidden([(cache, IDS[first : first + 3])])
    return cache
