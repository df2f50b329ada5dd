"""What was really done to a checkpoint: the record inside every artifact."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.errors import ArtifactError
from compression.recipe import Recipe

FILE_NAME = "compression_manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceRecord(_Record):
    """Which checkpoint the artifact was made from."""

    model: str
    architecture: str
    digest: str
    """SHA-256 over the config and every weight file."""


class TensorRecord(_Record):
    """What became of one tensor."""

    name: str
    shape: tuple[int, ...]
    requested: str
    applied: str
    """Read from the codes that were made, not from the plan."""
    reason: str
    bytes_before: int
    bytes_stored: int
    bytes_in_memory: int
    relative_error: float | None
    """Frobenius norm of the change over that of the weight; None where nothing was quantized."""


class Manifest(_Record):
    """The whole record.

    ``bytes_before`` are the checkpoint's own. ``bytes_in_memory`` is what the weights need on the
    embedded engine's kernels; the engine itself reports the live figure, which also counts padding
    and the copies of the norms.
    """

    format_version: int = 1
    recipe: Recipe
    recipe_digest: str
    source: SourceRecord
    tensors: tuple[TensorRecord, ...]
    bytes_before: int
    bytes_stored: int
    bytes_in_memory: int
    bits_per_weight: float
    """``bytes_in_memory`` in bits over the number of weights, embeddings and norms included."""
    seconds: float
    peak_memory_bytes: int
    versions: dict[str, str]
    files: dict[str, str]
    """SHA-256 (hex) of each weight file."""


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of an artifact directory, or None for a plain checkpoint.

    Raises:
        ArtifactError: the manifest is unreadable, or a file it names is missing.
    """
    path = directory / FILE_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(
            f"{str(path)!r} is unreadable ({reason}): build the artifact again"
        ) from None
    for name in manifest.files:
        if not (directory / name).is_file():
            raise ArtifactError(f"{str(directory / name)!r} is missing: build the artifact again")
    return manifest
