"""The one verb: a plan becomes an artifact directory, layer by layer."""

import errno
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compression.artifact import write_companions, write_manifest
from compression.calibration_documents import CalibrationText
from compression.calibration_text import calibration_windows
from compression.conversion import convert_linear, convert_table, copy
from compression.digest import hash_file
from compression.errors import BuildError
from compression.events import OnProgress, Progress
from compression.fidelity_check import measure_build, require_budget
from compression.kernel_timing import time_kernels
from compression.kv.layers import needs_centres
from compression.manifest import Manifest, RefusalRecord, SourceRecord, TensorRecord
from compression.memory import PeakMemory, return_free_memory
from compression.plan import Plan, StoredTensor, TensorPlan, module_of
from compression.processor import processor
from compression.pruned import pruned_plan
from compression.requirements import method_of
from compression.schemes import CALIBRATED, FEEDBACK, Unquantized
from compression.tensor_file import TensorFileWriter
from compression.tensor_source import TensorSource
from compression.tokenizer_file import load_tokenizer

if TYPE_CHECKING:
    from compression.calibration import Calibrating
    from compression.weights.statistics import InputStatistics

_LIBRARIES = ("narrowgate", "torch", "transformers", "safetensors", "bitsandbytes")


def build(
    plan: Plan,
    source: SourceRecord,
    directory: Path,
    on_progress: OnProgress,
    *,
    text: CalibrationText | None = None,
    is_measured: bool = False,
) -> Manifest:
    """Write the artifact into ``directory``, which must exist and be empty.

    Memory stays below ``plan.peak_bytes``: one weight of the checkpoint is held at a time, and
    with calibration one layer. ``text`` is what the recipe calibrates on; None where nothing does.
    ``is_measured`` puts the fidelity of every slice into the manifest; a recipe with a budget is
    always measured.

    Raises:
        BuildError: the disk is full or cannot be written, or the budget is not kept.
        CorruptCheckpoint: a weight is NaN or infinite, or a file cannot be read.
        CompressionError: the calibration text cannot be used, or pruning refuses.
    """
    start = time.perf_counter()
    memory = PeakMemory()
    declared = plan.peak_bytes
    with _disk_errors(directory, plan.bytes_stored), ExitStack() as stack:
        _require_space(directory, _space_needed(plan))
        # 1. what is taken out goes first: what stays is an ordinary checkpoint
        full, windows = plan.facts, _windows(plan, text)
        plan, pruning = stack.enter_context(pruned_plan(plan, windows, directory, on_progress))
        # 2. the weights, layer by layer
        with _one_torch_thread():
            records, files = _convert(plan, windows, directory, on_progress)
        # 3. everything around them
        for path in (*write_companions(plan, directory), *_centres(plan, windows, directory)):
            files[path.name] = hash_file(path)
        kernels = time_kernels(plan, directory)
        peak, grown = memory.total_bytes, memory.grown_bytes
        # 4. how far it is from the source
        fidelity = texts = None
        if is_measured or plan.recipe.budget is not None:
            measured = measure_build(full, plan.facts, plan.recipe, directory, on_progress)
            fidelity = measured.fidelity
            require_budget(plan.recipe, fidelity)
            texts, digests = measured.keep_texts(directory)
            files |= digests
        # 5. the record, last: a directory without it is no artifact
        manifest = Manifest(
            **_asked(plan, text),
            source=source,
            tensors=records,
            bytes_before=full.num_bytes,
            **_sizes(plan),
            prune=pruning,
            fidelity=fidelity,
            fixed_texts=texts,
            kernels=kernels,
            seconds=time.perf_counter() - start,
            peak_memory_bytes=peak,
            peak_build_bytes=grown,
            peak_declared_bytes=declared,
            files=files,
        )
        write_manifest(manifest, directory)
    return manifest


def _windows(plan: Plan, text: CalibrationText | None) -> Tensor | None:
    if text is None:
        return None
    context = plan.facts.architecture.max_position_embeddings
    tokenizer = load_tokenizer(plan.facts.directory)
    return calibration_windows(plan.recipe.calibration, tokenizer, context, text)


def _convert(
    plan: Plan, windows: Tensor | None, directory: Path, on_progress: OnProgress
) -> tuple[tuple[TensorRecord, ...], dict[str, str]]:
    """Write every weight file; return the records in the checkpoint's order, and the digests."""
    records: dict[str, TensorRecord] = {}
    total = len(plan.tensors)
    with TensorSource(plan.facts) as source, ExitStack() as stack:
        writers = {
            file: stack.enter_context(TensorFileWriter(directory / file, _declared(plan, file)))
            for file in plan.facts.files
        }
        calibrator = _calibrator(plan, windows)
        if calibrator is not None:
            stack.enter_context(calibrator)
        for layer, tensors in _by_layer(plan):
            stages = _stages(layer, tensors, calibrator)
            for statistics, some in stages:
                served: dict[str, Tensor] = {}
                for tensor in some:
                    name = tensor.fact.name
                    on_progress(Progress("quantize", len(records), total, "tensors", name))
                    writer = writers[tensor.fact.file]
                    known = statistics.get(module_of(name))
                    if tensor.is_linear and not isinstance(tensor.scheme, Unquantized):
                        converted = convert_linear(tensor, source, writer, known)
                        records[name] = converted.record
                        if known is not None:
                            served[name] = converted.served()
                    elif known is not None and _has_feedback(tensor):
                        records[name] = convert_table(tensor, source, writer, known)
                    else:
                        records[name] = copy(tensor, source, writer)
                if calibrator is not None and served:
                    calibrator.serve(served)
            return_free_memory()
        on_progress(Progress("quantize", total, total, "tensors"))
        files = {file: writer.finish() for file, writer in writers.items()}
    return tuple(records[tensor.fact.name] for tensor in plan.tensors), files


def _stages(
    layer: int | None, tensors: list[TensorPlan], calibrator: "Calibrating | None"
) -> Iterator[tuple[dict[str, "InputStatistics"], list[TensorPlan]]]:
    """Yield tensors that are converted together, with what is known of their inputs."""
    if layer is None or calibrator is None:
        yield {}, tensors
        return
    left = tensors
    for statistics in calibrator.stages(layer):
        yield statistics, [each for each in left if module_of(each.fact.name) in statistics]
        left = [each for each in left if module_of(each.fact.name) not in statistics]
    yield {}, left


def _calibrator(plan: Plan, windows: Tensor | None) -> "Calibrating | None":
    methods = {method_of(tensor.scheme) for tensor in plan.tensors}
    if windows is None or not methods & CALIBRATED:
        return None
    # It runs transformers' layers, which take seconds to import.
    from compression.calibration import Calibrator
    from compression.propagation import PropagatingCalibrator

    if methods & FEEDBACK:
        return PropagatingCalibrator(plan.facts, windows, plan.carried.embeddings)
    return Calibrator(plan.facts, windows, whole=False)


def _centres(plan: Plan, windows: Tensor | None, directory: Path) -> list[Path]:
    if windows is None or not needs_centres(plan.recipe.kv_cache):
        return []
    from compression.kv.centres import add_centres

    return [add_centres(plan.facts, windows, directory)]


def _by_layer(plan: Plan) -> Iterator[tuple[int | None, list[TensorPlan]]]:
    """Yield what lies outside the decoder's layers, then each layer's tensors.

    An output head that is calibrated comes last, as the layer behind all others.
    """
    if plan.facts.known is None:
        yield None, list(plan.tensors)
        return
    layers: dict[str, list[TensorPlan]] = {}
    heads = [each for each in plan.tensors if not each.is_linear and _has_feedback(each)]
    for tensor in plan.tensors:
        if tensor in heads:
            continue
        inner = tensor.fact.name.removeprefix("model.layers.")
        is_inside = inner != tensor.fact.name
        layers.setdefault(inner.partition(".")[0] if is_inside else "", []).append(tensor)
    yield None, layers[""]
    for layer in range(plan.facts.known.num_layers):
        yield layer, layers[str(layer)]
    if heads:
        yield plan.facts.known.num_layers, heads


def _has_feedback(tensor: TensorPlan) -> bool:
    return method_of(tensor.scheme) in FEEDBACK


def _declared(plan: Plan, file: str) -> list[StoredTensor]:
    return [stored for each in plan.tensors if each.fact.file == file for stored in each.stored]


def _asked(plan: Plan, text: CalibrationText | None) -> dict[str, Any]:
    """Return what the manifest says of the recipe, and of what carries it out."""
    return {
        "recipe": plan.recipe,
        "recipe_digest": plan.recipe.digest,
        "calibration_digest": None if text is None else text.digest,
        "refusals": tuple(RefusalRecord(**asdict(refusal)) for refusal in plan.refusals),
        "processor": processor(),
        "versions": _versions(),
    }


def _sizes(plan: Plan) -> dict[str, Any]:
    """Return the manifest's bytes and bits per weight."""

    def bits(num_bytes: int, tensors: tuple[TensorPlan, ...]) -> float:
        return 8 * num_bytes / sum(tensor.num_weights for tensor in tensors)

    linears = plan.linears
    return {
        "bytes_stored": plan.bytes_stored,
        "bytes_in_memory": plan.bytes_in_memory,
        "bits_per_weight": bits(plan.bytes_in_memory, plan.tensors),
        "bits_per_weight_stored": bits(plan.bytes_stored, plan.tensors),
        "linear_bits": bits(sum(each.bytes_in_memory for each in linears), linears),
        "linear_bits_stored": bits(sum(each.bytes_stored for each in linears), linears),
    }


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[library] = version(library)
    return found


def _space_needed(plan: Plan) -> int:
    """Return the artifact's bytes, and those of the smaller checkpoint that pruning makes."""
    return plan.bytes_stored + (plan.facts.num_bytes if plan.recipe.prune.is_active else 0)


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
        file = error.filename
        is_ours = file is None or Path(str(file)).is_relative_to(directory.parent)
        what = f"write the artifact to {place!r}" if is_ours else f"read {str(file)!r}"
        raise BuildError(
            f"cannot {what}: {error.strerror or error}; check path and permissions"
        ) from None
