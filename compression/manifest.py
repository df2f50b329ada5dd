"""What was really done to a checkpoint: the record inside every artifact."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.errors import ArtifactError
from compression.fidelity_record import SliceFidelity
from compression.fixed_texts import FixedTextsRecord
from compression.pruning.record import PruneRecord
from compression.recipe import Recipe

FILE_NAME = "compression_manifest.json"
FORMAT_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceRecord(_Record):
    """Which checkpoint the artifact was made from."""

    model: str
    revision: str | None = None
    """The hub's commit; None for a local directory."""
    architecture: str
    digest: str
    """SHA-256 over the config, the tokenizer and every weight file."""
    files: dict[str, str] = {}
    """SHA-256 (hex) of each weight file."""


class TensorRecord(_Record):
    """What became of one tensor."""

    name: str
    shape: tuple[int, ...]
    requested: str
    applied: str
    """Read from the codes that were made, not from the plan."""
    method: str | None = None
    """How the codes were chosen; None where nothing was quantized."""
    reason: str
    bytes_before: int
    bytes_stored: int
    bytes_in_memory: int
    relative_error: float | None
    """Frobenius norm of the change over that of the weight; None where nothing was quantized."""
    output_error: float | None = None
    """Root mean square of the output's change over that of the output, on the calibration text;
    None without one."""


class RefusalRecord(_Record):
    """A part of the recipe that was not carried out, although the rest was."""

    subject: str
    requested: str
    reason: str


class KernelRecord(_Record):
    """The kernel that one kind of layer runs on here, timed with one row."""

    scheme: str
    rows: int
    columns: int
    count: int
    """How many layers of the model are of this kind; q, k, v are one layer, gate and up too."""
    kernel: str
    timed_rows: int
    """Fewer than ``rows`` where the weight is large: a product reads both at the same speed."""
    microseconds: float
    bf16_microseconds: float


class Manifest(_Record):
    """The whole record.

    ``bytes_before`` are the checkpoint's own. ``bytes_in_memory`` is what the weights need on the
    embedded engine's kernels; the engine itself reports the live figure, which also counts padding
    and the copies of the norms.
    """

    format_version: Literal[2] = 2
    recipe: Recipe
    recipe_digest: str
    calibration_digest: str | None = None
    """SHA-256 (hex) of the calibration text's documents; None where none was read."""
    source: SourceRecord
    tensors: tuple[TensorRecord, ...]
    refusals: tuple[RefusalRecord, ...] = ()
    bytes_before: int
    bytes_stored: int
    bytes_in_memory: int
    bits_per_weight: float
    """``bytes_in_memory`` in bits over the number of weights, embeddings and norms included."""
    bits_per_weight_stored: float | None = None
    """The same for ``bytes_stored``."""
    linear_bits: float | None = None
    """Bits per weight of the linear layers alone, in memory."""
    linear_bits_stored: float | None = None
    """Bits per weight of the linear layers alone, in the files."""
    prune: PruneRecord | None = None
    """What was taken out before the weights were quantized."""
    fidelity: tuple[SliceFidelity, ...] | None = None
    """Measured slices, worst first; None where nobody measured."""
    fixed_texts: FixedTextsRecord | None = None
    """What engines are held against later; kept where the fidelity was measured."""
    processor: str = ""
    """What ``kernels`` were timed on."""
    kernels: tuple[KernelRecord, ...] = ()
    """Empty where the family is not known by heart."""
    seconds: float
    peak_memory_bytes: int
    """Of the process, the interpreter and its libraries included."""
    peak_build_bytes: int | None = None
    """Of the build alone: what the process grew by at most."""
    peak_declared_bytes: int | None = None
    """The bound for ``peak_build_bytes`` that the plan gave beforehand."""
    versions: dict[str, str]
    files: dict[str, str]
    """SHA-256 (hex) of each file beside this one."""


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of an artifact directory, or None for a plain checkpoint.

    Raises:
        ArtifactError: the manifest is unreadable or of another format, or a file that it names is
            missing.
    """
    path = directory / FILE_NAME
    try:
        fields = json.loads(path.read_bytes())
        _require_format(fields, path)
        manifest = Manifest.model_validate(fields)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = _reason(error)
        raise ArtifactError(
            f"{str(path)!r} is unreadable ({reason}): build the artifact again"
        ) from None
    for name in manifest.files:
        if Path(name).name != name or not (directory / name).is_file():
            raise ArtifactError(f"{str(directory / name)!r} is missing: build the artifact again")
    return manifest


def weight_files(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the artifact's safetensors files."""
    return tuple(name for name in manifest.files if name.endswith(".safetensors"))


def _require_format(fields: object, path: Path) -> None:
    found = fields.get("format_version", 1) if isinstance(fields, Mapping) else None
    if type(found) is int and found != FORMAT_VERSION:
        age = "an older" if found < FORMAT_VERSION else "a newer"
        raise ArtifactError(
            f"{str(path)!r} has format {found}, of {age} version of this program, which reads "
            f"format {FORMAT_VERSION}: build the artifact again"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
    return str(error).splitlines()[0]
