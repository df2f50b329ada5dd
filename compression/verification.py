"""Whether an artifact's files are still those that its build wrote."""

from pathlib import Path

from compression.digest import hash_file, weight_digests
from compression.errors import ArtifactError
from compression.events import OnProgress, Progress, ignore
from compression.manifest import Manifest, weight_files


def require_unchanged(directory: Path, manifest: Manifest) -> None:
    """Check weights and config before they are used.

    Weight files whose path, size, time and inode are as they were when they were last hashed are
    taken as unchanged, so that a warm start reads them only once.

    Raises:
        ArtifactError: a file differs from what the build wrote.
    """
    found = weight_digests(directory, weight_files(manifest))
    found["config.json"] = hash_file(directory / "config.json")
    for name, digest in found.items():
        _require_equal(directory / name, digest, manifest.files.get(name))


def verify(directory: Path, manifest: Manifest, on_progress: OnProgress = ignore) -> None:
    """Hash every file of the artifact, whatever is remembered.

    Raises:
        ArtifactError: a file differs from what the build wrote.
    """
    total = sum((directory / name).stat().st_size for name in manifest.files)
    done = 0
    for name, digest in manifest.files.items():
        path = directory / name
        _require_equal(path, hash_file(path, done, total, on_progress), digest)
        done += path.stat().st_size
    on_progress(Progress("hash", total, total, "bytes"))


def _require_equal(path: Path, found: str, recorded: str | None) -> None:
    if found != recorded:
        raise ArtifactError(
            f"{str(path)!r} was changed after it was built (its SHA-256 is {found[:12]}…, the "
            f"manifest has {(recorded or 'none')[:12]}): build the artifact again"
        )
