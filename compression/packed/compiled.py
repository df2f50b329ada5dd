"""Packed layers that run on this project's own kernels."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from compression.kernels import fields
from compression.kernels.grouped_tile import PART
from compression.kernels.matrix_operations import ON_UNIT, UNIT_FROM
from compression.kernels.matrix_unit import MOST_COLUMNS, TILE, permission
from compression.kernels.product_operations import PRODUCTS
from compression.kernels.row_operations import NORM
from compression.kernels.team import team
from compression.packed.linear import PackedLinear

_LEAST_ROWS, _MOST_ROWS = 8, 64
"""Rows of a product's chunk."""
_LINE, _PAGE_HALF = 64, 2048
"""Bytes."""
_UNIT_ROWS = 2 * TILE
"""Rows that the matrix unit takes together."""
_CHUNK_WEIGHTS = 24 * 1024
"""Weights of a product's chunk: they stay in a core's first cache while inputs pass by."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A weight as one of :data:`compression.kernels.product_operations.PRODUCTS` reads it."""

    format: str
    """A key of :data:`compression.kernels.product_operations.PRODUCTS`."""
    matrix: Tensor
    """``[rows, …]`` or ``[tiles, …]``, contiguous."""
    columns: int
    """Padded to what the kernel takes at a time; inputs are 0 beyond the weight's own."""
    peak: int
    """How inputs are rounded, as :data:`compression.kernels.fields.PEAK` counts it."""
    scales: Tensor | None = None
    zeros: Tensor | None = None
    groups: int = 0
    """Scales of a row, of int4 and int5."""
    tile: int = 2
    """Rows that the kernel takes at a time."""

    @property
    def totals(self) -> int:
        """Return the numbers that are kept of one row of inputs beside its codes."""
        return self.columns // PART if self.groups else 0

    @property
    def input_bytes(self) -> int:
        """Return the bytes from one row of inputs to the next."""
        return apart(self.columns * (2 if self.peak else 4))


class CompiledLinear(PackedLinear):
    """A layer whose weight the compiled kernels read, for any number of inputs."""

    _written: tuple[tuple[int, ...], np.ndarray] | None = None
    """The program of a product, and where the layer's tensors lay when it was written."""

    @property
    @abstractmethod
    def operand(self) -> Operand:
        """Return the weight; its tensors are those of this layer."""

    @property
    def on_unit(self) -> bool:
        """Return whether many rows of inputs are multiplied on the processor's matrix unit."""
        held = self.operand
        return (
            (held.format, held.peak) in ON_UNIT
            and (held.matrix.shape[0] % TILE == 0 or held.tile == TILE)
            and held.columns <= MOST_COLUMNS
            and permission()
        )

    def write_product(
        self, row: np.ndarray, inputs: "Inputs", out: "Outputs", *, adds: bool
    ) -> None:
        """Describe the product of this layer in a row of a program.

        Args:
            row: int64 ``[FIELDS]``, zeros.
            inputs: where the inputs lie.
            out: where the outputs belong.
            adds: whether to add to what is there.
        """
        held = self.operand
        row[fields.FUNCTION] = PRODUCTS[held.format].address
        row[fields.MATRIX] = held.matrix.data_ptr()
        row[fields.MATRIX_STRIDE] = held.matrix.stride(0) * held.matrix.element_size()
        row[fields.SCALES] = 0 if held.scales is None else held.scales.data_ptr()
        row[fields.ZEROS] = 0 if held.zeros is None else held.zeros.data_ptr()
        row[fields.NUM_GROUPS] = held.groups
        row[fields.BIAS] = 0 if self.bias is None else self.bias.data_ptr()
        row[fields.COLUMNS], row[fields.ROWS] = held.columns, self.rows
        row[fields.X], row[fields.X_STRIDE] = inputs.values, held.input_bytes
        row[fields.X_STEPS], row[fields.X_TOTALS] = inputs.steps, inputs.totals
        row[fields.Y], row[fields.Y_STRIDE] = out.values, out.stride
        row[fields.ADDS] = adds
        tile = held.tile
        if self.on_unit:
            row[fields.ON_UNIT] = ON_UNIT[held.format, held.peak].address
            row[fields.UNIT_FROM] = UNIT_FROM[held.format]
            tile = _UNIT_ROWS
        chunk = min(_MOST_ROWS, max(_LEAST_ROWS, tile, _CHUNK_WEIGHTS // held.columns))
        chunk -= chunk % tile
        row[fields.CHUNK], row[fields.PIECES] = chunk, -(-self.rows // chunk)

    def write_inputs(self, row: np.ndarray, inputs: "Inputs") -> None:
        """Say in a row of a program that it writes this layer's inputs."""
        held = self.operand
        row[fields.OUT], row[fields.OUT_STRIDE] = inputs.values, held.input_bytes
        row[fields.PEAK] = held.peak
        row[fields.STEPS], row[fields.TOTALS] = inputs.steps, inputs.totals
        row[fields.PADDED], row[fields.SIZE] = held.columns, self.columns
        has_quads = held.peak != fields.PLANES and self.on_unit
        row[fields.QUADS] = UNIT_FROM[held.format] if has_quads else 0

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [m, columns]`` (bf16 or f32) to ``[m, rows]`` of the same dtype."""
        return super().forward(x) if x.shape[0] >= self.dense_from else self._few_rows(x)

    def product(self, x: Tensor) -> "Product":
        """Return the product with ``x [m, columns]`` (bf16 or f32), to be run.

        Raises:
            ValueError: ``x`` has another width.
        """
        if x.shape[1] != self.columns:
            raise ValueError(f"inputs of {x.shape[1]} columns for a weight of {self.columns}")
        wide = x.to(torch.float32).contiguous()
        held, count = self.operand, wide.shape[0]
        whole = whole_tiles(count)
        values = torch.empty(whole, held.input_bytes, dtype=torch.uint8)
        # The unit's last tile has rows that are no inputs: with 0 they make no denormal numbers.
        steps, totals = torch.zeros(whole), torch.zeros(whole, max(1, held.totals))
        out = matrix(count, self.rows)
        program = self._template(held).copy()
        program[0, fields.IN] = wide.data_ptr()
        program[0, fields.OUT] = program[1, fields.X] = values.data_ptr()
        program[0, fields.STEPS] = program[1, fields.X_STEPS] = steps.data_ptr()
        program[0, fields.TOTALS] = program[1, fields.X_TOTALS] = totals.data_ptr()
        program[1, fields.Y] = out.data_ptr()
        return Product(program, out, (wide, values, steps, totals))

    def _template(self, held: Operand) -> np.ndarray:
        """Return the program of a product but for the addresses of inputs and outputs."""
        tensors = (held.matrix, held.scales, held.zeros, self.bias)
        place = tuple(0 if each is None else each.data_ptr() for each in tensors)
        if self._written is None or self._written[0] != place:
            program = np.zeros((2, fields.FIELDS), np.int64)
            program[0, fields.FUNCTION] = NORM.address
            program[0, fields.IN_STRIDE] = 4 * self.columns
            self.write_inputs(program[0], Inputs(0, 0, 0))
            self.write_product(
                program[1], Inputs(0, 0, 0), Outputs(0, apart(4 * self.rows)), adds=False
            )
            self._written = place, program
        return self._written[1]

    def _few_rows(self, x: Tensor) -> Tensor:
        return self.product(x).run().to(x.dtype)


def apart(size: int) -> int:
    """Return from where to where rows of so many bytes lie, whole cache lines.

    Rows that are far multiples of a page's half apart share few places of a core's first cache.
    """
    lines = -(-size // _LINE) * _LINE
    return lines + _LINE if lines % _PAGE_HALF == 0 else lines


def matrix(rows: int, columns: int) -> Tensor:
    """Return float32 ``[rows, columns]`` to be written, its rows :func:`apart`."""
    return torch.empty(rows, apart(4 * columns) // 4)[:, :columns]


def whole_tiles(rows: int) -> int:
    """Return for how many rows of inputs there must be memory: the matrix unit takes 16."""
    return -(-rows // TILE) * TILE


@dataclass(frozen=True, slots=True)
class Product:
    """One product as a program; the layer must outlive it."""

    program: np.ndarray
    out: Tensor
    """Float32 ``[m, rows]``."""
    memory: tuple[Tensor, ...]
    """What the program reads and writes beside, held."""

    def run(self) -> Tensor:
        """Multiply on as many threads as PyTorch has, and return :attr:`out`."""
        team(torch.get_num_threads()).run(self.program, len(self.out))
        return self.out


@dataclass(frozen=True, slots=True)
class Inputs:
    """Addresses of the inputs of a product."""

    values: int
    """Of codes or float32, ``[inputs, columns]``."""
    steps: int
    """Of float32 ``[inputs]``: what a code stands for."""
    totals: int
    """Of float32 ``[inputs, totals]``: sums of codes."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the outputs of a product belong."""

    values: int
    """Address of float32 ``[inputs, rows]``."""
    stride: int
    """Bytes from one input's to the next one's."""

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return where a float32 matrix lies."""
        return cls(values.data_ptr(), 4 * values.stride(0))
