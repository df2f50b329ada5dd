"""The content-addressed store: one directory per digest, complete or not there at all."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from compression.errors import ArtifactError, BuildError, CorruptCheckpoint
from compression.events import OnProgress, Progress, ignore
from compression.facts import read_header
from compression.manifest import read_manifest, weight_files
from compression.verification import require_unchanged

_ASIDE = ".building-"
_TELL_EVERY_S = 10.0


def ensure(
    store: Path,
    digest: str,
    write: Callable[[Path], object],
    on_progress: OnProgress = ignore,
) -> tuple[Path, bool]:
    """Return the directory of ``digest`` and whether it was there already.

    ``write`` fills an empty directory aside, which is renamed into place when it returns. Two
    processes that want one digest share one build; the one that waits says so.

    Raises:
        BuildError: the store cannot be written.
    """
    target = store / digest
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _locked(store, digest, on_progress):
            _sweep(store, digest)
            if _is_complete(target):
                return target, True
            with aside(store, f"{_ASIDE}{digest}-") as temporary:
                write(temporary)
                if target.exists():
                    shutil.rmtree(target)
                temporary.rename(target)
    except OSError as error:
        raise BuildError(
            f"cannot write to the store {str(store)!r} ({error.strerror or error}): "
            "free it or set NARROWGATE_HOME to another place"
        ) from None
    return target, False


@contextmanager
def _locked(store: Path, digest: str, on_progress: OnProgress) -> Iterator[None]:
    """Hold the lock of a digest; who waits for it tells how far the other build is."""
    lock, seconds = FileLock(store / f"{digest}.lock"), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            seconds = _TELL_EVERY_S
            written = sum(map(_written_bytes, store.glob(f"{_ASIDE}{digest}-*/**/*")))
            detail = f"for another build of this artifact, {written:,} bytes so far"
            on_progress(Progress("wait", 0, 1, "steps", detail))
    if seconds:
        on_progress(Progress("wait", 1, 1, "steps"))
    try:
        yield
    finally:
        lock.release()


def _written_bytes(path: Path) -> int:
    """Return what of a file is on disk: its length is that of the whole from the beginning."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:  # the other build goes on
        return 0


@contextmanager
def aside(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield an empty directory that is gone afterwards, unless it was renamed."""
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    temporary.chmod(0o755)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(store: Path, digest: str) -> None:
    """Remove what a killed build of this digest left behind; call with its lock held."""
    for remains in store.glob(f"{_ASIDE}{digest}-*"):
        shutil.rmtree(remains, ignore_errors=True)


def _is_complete(directory: Path) -> bool:
    """Return whether manifest and files are there, weights and config as they were built."""
    try:
        manifest = read_manifest(directory)
        for file in () if manifest is None else weight_files(manifest):
            read_header(directory / file)
        if manifest is not None:
            require_unchanged(directory, manifest)
    except (ArtifactError, CorruptCheckpoint):
        return False
    return manifest is not None
