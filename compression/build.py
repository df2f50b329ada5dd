"""The one verb: a plan becomes an artifact directory, tensor by tensor."""

import errno
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from compression.artifact import write_companions, write_index, write_manifest
from compression.errors import BuildError, CorruptCheckpoint
from compression.events import OnProgress, Progress
from compression.manifest import Manifest, SourceRecord, TensorRecord
from compression.packing import pack_int4, pack_int8
from compression.plan import EMBEDDINGS, Plan, TensorPlan
from compression.schemes import Int4, Unquantized
from compression.tensor_file import TensorFileWriter
from compression.weights.codes import Codes
from compression.weights.quantizer import quantize

_LIBRARIES = ("narrowgate", "torch", "safetensors")


def build(plan: Plan, source: SourceRecord, directory: Path, on_progress: OnProgress) -> Manifest:
    """Write the artifact into ``directory``, which must exist and be empty.

    Memory holds one tensor of the checkpoint and its codes at a time.

    Raises:
        BuildError: the disk is full or cannot be written.
        CorruptCheckpoint: a weight is NaN or infinite, or a file cannot be read.
    """
    start = time.perf_counter()
    with _disk_errors(directory, plan.bytes_stored), _one_torch_thread():
        _require_space(directory, plan.bytes_stored)
        # 1. the weights, file by file
        files: dict[str, str] = {}
        records: dict[str, TensorRecord] = {}
        for file in plan.facts.files:
            files[file] = _convert_file(plan, file, directory, records, on_progress)
        # 2. everything around them
        write_companions(plan, directory)
        write_index(plan.facts, plan, directory)
        # 3. the record, last: a directory without it is no artifact
        manifest = _record(plan, source, records, files, time.perf_counter() - start)
        write_manifest(manifest, directory)
    return manifest


def _convert_file(
    plan: Plan,
    file: str,
    directory: Path,
    records: dict[str, TensorRecord],
    on_progress: OnProgress,
) -> str:
    tensors = [tensor for tensor in plan.tensors if tensor.fact.file == file]
    declared = [stored for tensor in tensors for stored in tensor.stored]
    try:
        with (
            safe_open(plan.facts.directory / file, framework="pt") as checkpoint,
            TensorFileWriter(directory / file, declared) as writer,
        ):
            for tensor in tensors:
                name = tensor.fact.name
                on_progress(Progress("quantize", len(records), len(plan.tensors), "tensors", name))
                weight = checkpoint.get_tensor(name)
                codes = _quantize(tensor, weight)
                for stored_name, value in _stored(tensor, weight, codes).items():
                    writer.write(stored_name, value)
                records[name] = _tensor_record(tensor, weight, codes)
            on_progress(Progress("quantize", len(records), len(plan.tensors), "tensors"))
            return writer.finish()
    except SafetensorError as error:
        raise CorruptCheckpoint(
            f"cannot read {file!r} ({error}): fetch the checkpoint again"
        ) from None


def _quantize(tensor: TensorPlan, weight: Tensor) -> Codes | None:
    """Return the codes of one weight, or None where it is kept as it is."""
    if not torch.isfinite(weight).all():
        name = tensor.fact.name
        raise CorruptCheckpoint(
            f"{name!r} holds NaN or infinite values: fetch the checkpoint again"
        )
    if isinstance(tensor.scheme, Unquantized):
        return None
    return quantize(weight, tensor.scheme, workers=len(os.sched_getaffinity(0)))


def _stored(tensor: TensorPlan, weight: Tensor, codes: Codes | None) -> dict[str, Tensor]:
    """Return what the artifact holds for one weight."""
    name = tensor.fact.name
    if codes is None or name in EMBEDDINGS:
        return {name: weight}
    if isinstance(tensor.scheme, Int4):
        return pack_int4(name, codes, symmetric=tensor.scheme.symmetric)
    return pack_int8(name, codes)


def relative_error(weight: Tensor, restored: Tensor) -> float:
    """Return ‖weight - restored‖ / ‖weight‖ (Frobenius); 0 for a weight of zeros."""
    exact = weight.to(torch.float32)
    norm = float(exact.norm())
    return float((exact - restored).norm()) / norm if norm else 0.0


def _tensor_record(tensor: TensorPlan, weight: Tensor, codes: Codes | None) -> TensorRecord:
    return TensorRecord(
        name=tensor.fact.name,
        shape=tensor.fact.shape,
        requested=tensor.scheme.label,
        applied="none" if codes is None else codes.label,
        reason=tensor.reason,
        bytes_before=tensor.fact.num_bytes,
        bytes_stored=tensor.bytes_stored,
        bytes_in_memory=tensor.bytes_in_memory,
        relative_error=None if codes is None else relative_error(weight, codes.dequantize()),
    )


def _record(
    plan: Plan,
    source: SourceRecord,
    records: dict[str, TensorRecord],
    files: dict[str, str],
    seconds: float,
) -> Manifest:
    count = sum(_count(tensor.fact.shape) for tensor in plan.tensors)
    return Manifest(
        recipe=plan.recipe,
        recipe_digest=plan.recipe.digest,
        source=source,
        tensors=tuple(records.values()),
        bytes_before=plan.facts.num_bytes,
        bytes_stored=plan.bytes_stored,
        bytes_in_memory=plan.bytes_in_memory,
        bits_per_weight=8 * plan.bytes_in_memory / count,
        seconds=seconds,
        peak_memory_bytes=_peak_memory_bytes(),
        versions={library: version(library) for library in _LIBRARIES},
        files=files,
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _require_space(directory: Path, needed: int) -> None:
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, "not enough space")


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Leave the processors to the quantizer's own workers while it runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _disk_errors(directory: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = str(directory.parent)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise BuildError(
                f"the disk of {place!r} is full: the artifact needs {needed / 1e6:.0f} MB there; "
                "free some space or set NARROWGATE_HOME to another disk"
            ) from None
        raise BuildError(
            f"cannot write the artifact to {place!r}: {error.strerror or error}"
        ) from None
