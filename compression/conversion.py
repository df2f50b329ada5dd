"""One tensor of a checkpoint becomes what the artifact holds for it."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.distortion import Distortion, block_rows, relative_error
from compression.errors import BuildError
from compression.footprint import PIECE_BYTES, TABLE_PIECE_BYTES
from compression.manifest import TensorRecord
from compression.packing import pack_grouped, pack_int8, pack_nf4
from compression.plan import TensorPlan
from compression.requirements import method_of
from compression.schemes import Grouped, Int8, Nf4, Unquantized
from compression.tensor_file import TensorFileWriter
from compression.tensor_source import TensorSource, require_finite
from compression.weights.codes import Codes
from compression.weights.nf4 import Nf4Codes, quantize_nf4
from compression.weights.quantizer import quantize, quantize_measured
from compression.weights.statistics import InputStatistics
from compression.weights.table import round_table


@dataclass(frozen=True, slots=True)
class Converted:
    """A linear weight in its new form, and the record of it."""

    record: TensorRecord
    codes: Codes | Nf4Codes

    def served(self) -> Tensor:
        """Return the float32 weight that engines compute with."""
        return self.codes.dequantize()


def convert_linear(
    tensor: TensorPlan,
    source: TensorSource,
    writer: TensorFileWriter,
    statistics: InputStatistics | None,
) -> Converted:
    """Quantize one linear weight and write its codes.

    Raises:
        CorruptCheckpoint: the weight holds NaN or infinite values, or cannot be read.
        BuildError: its values are too large for the scheme.
    """
    weight = source.read(tensor.fact.name)
    require_finite(tensor.fact.name, weight)
    made = _quantize(tensor, weight, statistics)
    _require_finite_scales(tensor, made.codes)
    for name, value in _packed(tensor, made.codes).items():
        writer.write(name, value)
    record = _record(
        tensor,
        applied=made.codes.label,
        method=made.method,
        relative_error=relative_error(weight, _blocks(made.codes)),
        output_error=None if made.output_error is None else made.output_error**0.5,
    )
    return Converted(record, made.codes)


def copy(tensor: TensorPlan, source: TensorSource, writer: TensorFileWriter) -> TensorRecord:
    """Copy one tensor piece by piece; tell what a scheme applied at load will do to it.

    Raises:
        CorruptCheckpoint: the tensor holds NaN or infinite values, or cannot be read.
        BuildError: its values are too large for the scheme.
    """
    distortion = Distortion()
    applied = Unquantized().label

    def checked() -> Iterator[Tensor]:
        nonlocal applied
        for piece in source.pieces(tensor.fact.name, PIECE_BYTES):
            require_finite(tensor.fact.name, piece)
            if isinstance(tensor.scheme, Int8):  # by rows, so pieces give the codes of the whole
                codes = quantize(piece, tensor.scheme.at_load)
                _require_finite_scales(tensor, codes)
                distortion.add(piece, codes.dequantize())
                applied = codes.label
            yield piece

    writer.write_pieces(tensor.fact.name, checked())
    is_quantized = not isinstance(tensor.scheme, Unquantized)
    return _record(
        tensor,
        applied=applied,
        method=method_of(tensor.scheme) if is_quantized else None,
        relative_error=distortion.relative if is_quantized else None,
        output_error=None,
    )


_LEAST_ROWS = 512
"""Rows of a table that one thread rounds: a step from column to column costs as much for one."""


def convert_table(
    tensor: TensorPlan, source: TensorSource, writer: TensorFileWriter, statistics: InputStatistics
) -> TensorRecord:
    """Write an output head so that it rounds to GPTQ's codes at load, some rows at a time.

    Raises:
        CorruptCheckpoint: the table holds NaN or infinite values, or cannot be read.
        BuildError: its values are too large for the scheme.
    """
    workers = len(os.sched_getaffinity(0))
    feedback = statistics.feedback
    distortion = Distortion()
    applied = Unquantized().label
    changed = power = 0.0

    def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what was to be rounded and what is stored for it."""
        target = statistics.target(rows).to(rows.dtype)
        return target, round_table(target, feedback)

    def pieces() -> Iterator[Tensor]:
        nonlocal applied, changed, power
        with ThreadPoolExecutor(workers) as pool:
            for piece in source.pieces(tensor.fact.name, TABLE_PIECE_BYTES):
                require_finite(tensor.fact.name, piece)
                num_parts = max(1, min(workers, len(piece) // _LEAST_ROWS))
                parts = list(pool.map(rounded, piece.chunk(num_parts)))
                target, stored = (torch.cat(each) for each in zip(*parts, strict=True))
                codes = quantize(stored, Int8())
                _require_finite_scales(tensor, codes)
                applied, served = codes.label, codes.dequantize()
                distortion.add(piece, served)
                error, whole = statistics.output_powers(target, served)
                changed, power = changed + error, power + whole
                yield stored

    writer.write_pieces(tensor.fact.name, pieces())
    return _record(
        tensor,
        applied=applied,
        method=method_of(tensor.scheme),
        relative_error=distortion.relative,
        output_error=(changed / power) ** 0.5 if power > 0 else 0.0,
    )


def _require_finite_scales(tensor: TensorPlan, codes: Codes | Nf4Codes) -> None:
    scales = codes.absmax if isinstance(codes, Nf4Codes) else codes.scales
    if not torch.isfinite(scales).all():
        raise BuildError(
            f"{tensor.fact.name!r} holds values too large for {tensor.scheme.label}, whose scale "
            "becomes infinite: name it in 'keep', or check the checkpoint"
        )


@dataclass(frozen=True, slots=True)
class _Made:
    codes: Codes | Nf4Codes
    method: str | None
    output_error: float | None


def _quantize(tensor: TensorPlan, weight: Tensor, statistics: InputStatistics | None) -> _Made:
    match tensor.scheme:
        case Nf4():
            return _Made(quantize_nf4(weight), None, None)
        case Int8() | Grouped() as scheme:
            workers = len(os.sched_getaffinity(0))
            made = quantize_measured(weight, scheme, statistics=statistics, workers=workers)
            return _Made(made.codes, made.method, made.output_error)
        case Unquantized():
            raise ValueError(f"{tensor.fact.name} is kept as it is")


def _packed(tensor: TensorPlan, codes: Codes | Nf4Codes) -> dict[str, Tensor]:
    """Return what the artifact holds for one weight."""
    name = tensor.fact.name
    if isinstance(codes, Nf4Codes):
        return pack_nf4(name, codes)
    if isinstance(tensor.scheme, Grouped):
        return pack_grouped(name, codes, symmetric=tensor.scheme.symmetric)
    return pack_int8(name, codes)


def _blocks(codes: Codes | Nf4Codes) -> Iterator[Tensor]:
    """Yield the served weight as blocks of rows."""
    rows, columns = codes.shape if isinstance(codes, Nf4Codes) else codes.codes.shape
    step = block_rows(columns)
    for start in range(0, rows, step):
        yield codes.select_rows(torch.arange(start, min(start + step, rows))).dequantize()


def _record(
    tensor: TensorPlan,
    *,
    applied: str,
    method: str | None,
    relative_error: float | None,
    output_error: float | None,
) -> TensorRecord:
    return TensorRecord(
        name=tensor.fact.name,
        shape=tensor.fact.shape,
        requested=tensor.scheme.label,
        applied=applied,
        method=method,
        reason=tensor.reason,
        bytes_before=tensor.fact.num_bytes,
        bytes_stored=tensor.bytes_stored,
        bytes_in_memory=tensor.bytes_in_memory,
        relative_error=relative_error,
        output_error=output_error,
    )
