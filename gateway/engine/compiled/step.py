"""The program of a decoder's step, and the memory it works in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compression.architecture import Architecture
from compression.kernels import fields as op
from compression.kernels.attention import MIX
from compression.kernels.attention_on_unit import ATTEND_ON_UNIT
from compression.kernels.attention_on_unit import scratch_bytes as bytes_on_unit
from compression.kernels.attention_operations import ATTEND, MERGE, TURN
from compression.kernels.attention_row import scratch_bytes as row_bytes
from compression.kernels.attention_row_functions import row_functions
from compression.kernels.attention_tiles import POSITIONS
from compression.kernels.row_operations import GATE, NORM, ROW_BYTES
from compression.kernels.team import SCRATCH_BYTES, team
from compression.packed.compiled import CompiledLinear, Inputs, Outputs, apart, matrix, whole_tiles
from gateway.engine.cache import LayerCodecs
from gateway.engine.compiled.layout import Held, held, layer_layout
from gateway.engine.compiled.tables import QUERIES, Span, cut, positions, row_table, task_table
from gateway.engine.layer import Layer, RmsNorm

_EPSILON_UNIT = 1e-12
_MOST_ROWS, _FEWER_ROWS = 512, 128
"""Rows that are run together: more would take memory and gain nothing; not fewer than these."""
_GATES_BYTES = 1 << 24
"""What gates of a layer, the widest of what lies between its operations, may take."""


def compile_step(
    architecture: Architecture,
    layers: Sequence[Layer],
    norm: RmsNorm,
    codecs: Sequence[LayerCodecs],
) -> "CompiledStep | None":
    """Return the step of a model with such a cache, or None where a kernel for it is missing."""
    parts = [
        _with_kernels(layer, each, architecture) for layer, each in zip(layers, codecs, strict=True)
    ]
    found = [part for part in parts if part is not None]
    return CompiledStep(architecture, found, norm) if len(found) == len(parts) else None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer all of whose parts have kernels."""

    layer: Layer
    qkv: CompiledLinear
    output: CompiledLinear
    gate_up: CompiledLinear
    down: CompiledLinear
    layout: np.ndarray
    key: Held
    value: Held


def _with_kernels(layer: Layer, codecs: LayerCodecs, shape: Architecture) -> _Layer | None:
    """Return a layer as the kernels take it, or None where one is missing."""
    if scratch_bytes(shape, queries=QUERIES) > SCRATCH_BYTES:
        return None
    layout = layer_layout(codecs, shape.num_kv_heads, shape.head_dim)
    key, value = held(codecs.key), held(codecs.value)
    match layer.linears:
        case (
            CompiledLinear() as qkv,
            CompiledLinear() as output,
            CompiledLinear() as gate_up,
            CompiledLinear() as down,
        ) if layout is not None and key is not None and value is not None:
            return _Layer(layer, qkv, output, gate_up, down, layout, key, value)
        case _:
            return None


def scratch_bytes(shape: Architecture, *, queries: int) -> int:
    """Return the memory of its own that a thread needs for any operation of a step."""
    size, heads = shape.head_dim, queries * (shape.num_heads // shape.num_kv_heads)
    attention = 4 * (2 * POSITIONS * size + heads * (2 * size + POSITIONS + 2))
    columns = max(shape.hidden_size, shape.intermediate_size, shape.num_heads * size)
    row = ROW_BYTES * apart(columns)
    single = row_bytes(size, shape.num_kv_heads, shape.num_heads // shape.num_kv_heads)
    return max(attention, bytes_on_unit(size, heads), single, row)


def most_rows(shape: Architecture) -> int:
    """Return how many rows are run together: fewer where a layer is wide."""
    fitting = _GATES_BYTES // (2 * 4 * shape.intermediate_size)
    return max(_FEWER_ROWS, min(_MOST_ROWS, fitting - fitting % _FEWER_ROWS))


class CompiledStep:
    """All layers and the last norm as one program; to be run from one thread at a time."""

    def __init__(self, architecture: Architecture, layers: list[_Layer], norm: RmsNorm) -> None:
        self._architecture = architecture
        self._layers = layers
        self._norm = norm
        windows = architecture.windows
        self._window = max(each or 0 for each in windows) if all(windows) else 0
        self._buffers = _Buffers(architecture, layers, rows=1, slots=1)
        self._program = self._write()

    def run(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        """Return the final hidden states of a step, float32 ``[rows, hidden]``.

        Args:
            x: embeddings ``[rows, hidden]``, the rows of all spans one after another.
            spans: whose keys and values are appended at their positions.
        """
        found, first = [], 0
        for piece in cut(spans, most_rows(self._architecture), self._architecture.head_dim):
            count = sum(span.count for span in piece)
            found.append(self._run(x[first : first + count], piece))
            first += count
        return found[0] if len(found) == 1 else torch.cat(found)

    def _run(self, x: Tensor, spans: Sequence[Span]) -> Tensor:
        threads = torch.get_num_threads()
        parts = [positions(span, threads, self._window) for span in spans]
        rows, slots = row_table(spans, parts, self._architecture.head_dim)
        tasks = task_table(spans, parts, self._architecture.num_kv_heads, threads)
        if not self._buffers.has_room(len(rows), slots):
            self._buffers = _Buffers(
                self._architecture,
                self._layers,
                rows=max(len(rows), self._buffers.rows),
                slots=max(slots, self._buffers.slots),
            )
            self._program = self._write()
        self._buffers.x[: len(rows)] = x
        team(threads).run(self._program, len(rows), rows, tasks)
        return self._buffers.out[: len(rows)].clone()

    def _write(self) -> np.ndarray:
        program = np.zeros((10 * len(self._layers) + 1, op.FIELDS), np.int64)
        for index, layer in enumerate(self._layers):
            self._write_layer(program[10 * index : 10 * index + 10], layer, index)
        last, held = program[-1], self._buffers
        self._write_norm(last, self._norm, held.x)
        size = self._architecture.hidden_size
        last[op.OUT], last[op.OUT_STRIDE] = held.out.data_ptr(), 4 * size
        last[op.PADDED] = last[op.SIZE] = size
        return program

    def _write_layer(self, rows: np.ndarray, part: _Layer, index: int) -> None:
        held, layer = self._buffers, part.layer
        inputs = held.inputs
        self._write_norm(rows[0], layer.input_norm, held.x)
        part.qkv.write_inputs(rows[0], inputs)
        part.qkv.write_product(rows[1], inputs, Outputs.of(held.heads), adds=False)
        for row, function in ((rows[2], TURN), (rows[3], ATTEND), (rows[4], MERGE)):
            self._write_attention(row, part, index)
            row[op.FUNCTION] = function.address
        rows[3, op.PIECES] = op.BY_TASKS
        part.output.write_inputs(rows[4], inputs)
        part.output.write_product(rows[5], inputs, Outputs.of(held.x), adds=True)
        self._write_norm(rows[6], layer.post_norm, held.x)
        part.gate_up.write_inputs(rows[6], inputs)
        part.gate_up.write_product(rows[7], inputs, Outputs.of(held.gates), adds=False)
        rows[8, op.FUNCTION] = GATE.address
        rows[8, op.IN], rows[8, op.IN_STRIDE] = held.gates.data_ptr(), 4 * held.gates.stride(0)
        part.down.write_inputs(rows[8], inputs)
        part.down.write_product(rows[9], inputs, Outputs.of(held.x), adds=True)

    def _write_norm(self, row: np.ndarray, norm: RmsNorm, x: Tensor) -> None:
        row[op.FUNCTION] = NORM.address
        row[op.IN], row[op.IN_STRIDE] = x.data_ptr(), 4 * x.stride(0)
        row[op.WEIGHT] = norm.weight.data_ptr()
        row[op.EPSILON] = round(norm.eps / _EPSILON_UNIT)

    def _write_attention(self, row: np.ndarray, part: _Layer, index: int) -> None:
        shape, held, layer = self._architecture, self._buffers, part.layer
        row[op.IN], row[op.IN_STRIDE] = held.heads.data_ptr(), 4 * held.heads.stride(0)
        row[op.HEADS], row[op.KV_HEADS] = shape.num_heads, shape.num_kv_heads
        row[op.HEAD_SIZE], row[op.LAYER] = shape.head_dim, index
        row[op.QUERY_NORM] = 0 if layer.q_norm is None else layer.q_norm.weight.data_ptr()
        row[op.KEY_NORM] = 0 if layer.k_norm is None else layer.k_norm.weight.data_ptr()
        row[op.EPSILON] = round(layer.input_norm.eps / _EPSILON_UNIT)
        row[op.LAYOUT] = part.layout.ctypes.data
        row[op.KEY_BLOCK], row[op.VALUE_BLOCK] = part.key.block, part.value.block
        row[op.CENTRE] = 0 if part.key.centre is None else part.key.centre.data_ptr()
        row[op.QUERIES], row[op.PARTS] = held.queries.data_ptr(), held.parts.data_ptr()
        row[op.WINDOW] = shape.windows[index] or 0
        functions = row_functions(part.key.kind, part.value.kind, shape.head_dim)
        row[op.ATTEND_ROW : op.ATTEND_ROW + 3] = [each.address if each else 0 for each in functions]
        row[op.ATTEND_MIX] = MIX.address
        if part.key.on_unit and part.value.on_unit:
            row[op.ATTEND_ON_UNIT] = ATTEND_ON_UNIT.address


class _Buffers:
    """Memory between the operations of a step, for so many rows and results of attention."""

    def __init__(
        self, architecture: Architecture, layers: Sequence[_Layer], *, rows: int, slots: int
    ) -> None:
        self.rows, self.slots = rows, slots
        heads = architecture.num_heads
        linears = [
            linear for each in layers for linear in (each.qkv, each.output, each.gate_up, each.down)
        ]
        self.x = matrix(rows, architecture.hidden_size)
        self.out = torch.empty(rows, architecture.hidden_size)
        self.heads = matrix(rows, max(each.qkv.rows for each in layers))
        self.queries = torch.empty(rows, heads * architecture.head_dim)
        self.gates = matrix(rows, max(each.gate_up.rows for each in layers))
        self.parts = torch.empty(slots, heads, architecture.head_dim + 2)
        whole = whole_tiles(rows)
        self._values = torch.empty(
            whole, max(each.operand.input_bytes for each in linears), dtype=torch.uint8
        )
        self._steps = torch.zeros(whole)
        self._totals = torch.zeros(whole, max(1, *(each.operand.totals for each in linears)))

    @property
    def inputs(self) -> Inputs:
        """Return where the inputs of every product lie."""
        values, steps, totals = self._values, self._steps, self._totals
        return Inputs(values.data_ptr(), steps.data_ptr(), totals.data_ptr())

    def has_room(self, rows: int, slots: int) -> bool:
        """Return whether a step fits."""
        return rows <= self.rows and slots <= self.slots
