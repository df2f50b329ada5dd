"""Whether an artifact's files are still those that its build wrote."""

from pathlib import Path

from compression.artifact import companions
from compression.digest import hash_file, weight_digests
from compression.errors import ArtifactError
from compression.events import OnProgress, Progress, ignore
from compression.manifest import FILE_NAME, Manifest, weight_files

_LOADED = (".safetensors", ".tensors", ".index.json", ".bin", ".pt", ".pth", ".gguf")
"""Endings of files that one engine or another loads because they are there."""


def require_unchanged(directory: Path, manifest: Manifest) -> None:
    """Check every file before one is used, and that no other lies there that would be used.

    Weight files whose path, size, time and inode are as they were when they were last hashed are
    taken as unchanged, so that a warm start reads them only once.

    Raises:
        ArtifactError: a file differs from what the build wrote, or was put beside it.
    """
    _require_no_strangers(directory, manifest)
    found = weight_digests(directory, weight_files(manifest))
    for name, recorded in manifest.files.items():
        _require_equal(directory / name, found.get(name) or hash_file(directory / name), recorded)


def verify(directory: Path, manifest: Manifest, on_progress: OnProgress = ignore) -> None:
    """Hash every file of the artifact, whatever is remembered.

    Raises:
        ArtifactError: a file differs from what the build wrote, or was put beside it.
    """
    _require_no_strangers(directory, manifest)
    total = sum((directory / name).stat().st_size for name in manifest.files)
    done = 0
    for name, digest in manifest.files.items():
        path = directory / name
        _require_equal(path, hash_file(path, done, total, on_progress), digest)
        done += path.stat().st_size
    on_progress(Progress("hash", total, total, "bytes"))


def _require_no_strangers(directory: Path, manifest: Manifest) -> None:
    weights = {path for path in directory.iterdir() if path.name.endswith(_LOADED)}
    for path in sorted(weights.union(companions(directory), directory.glob("config.json"))):
        if path.name not in {*manifest.files, FILE_NAME}:
            raise ArtifactError(
                f"{str(path)!r} was not there when the artifact was built, and engines would load "
                "it: remove it or build the artifact again"
            )


def _require_equal(path: Path, found: str, recorded: str | None) -> None:
    if found != recorded:
        raise ArtifactError(
            f"{str(path)!r} was changed after it was built (its SHA-256 is {found[:12]}…, the "
            f"manifest has {(recorded or 'none')[:12]}): build the artifact again"
        )
