"""The directory that a user names for a result: made aside, there as a whole or not at all."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compression.errors import BuildError

_PRUNED = "-pruned-"
"""What the name of a pruned checkpoint beside a build has after the build's own name."""


def require_new(out: Path) -> Path:
    """Return where ``out`` really lies, links followed; it must be absent or an empty directory.

    Raises:
        BuildError: it is neither, it is a mount point, or its name is none.
    """
    try:
        place = out.resolve()
        with suppress(FileNotFoundError):
            os.stat(place)  # refuses names that are too long, or that lead through a file
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise BuildError(f"--out {str(out)!r} exists and is not empty: give a new directory")
        if os.path.ismount(place):
            raise BuildError(
                f"--out {str(out)!r} is a mount point, which cannot be put in place at once: name "
                "a new directory inside it"
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise _unusable(out, error) from None
    return place


@contextmanager
def out_directory(out: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of ``out``; on failure nothing stays.

    What a killed build to the same place left behind is removed first.

    Raises:
        BuildError: the place cannot be written.
    """
    missing = [each for each in (out.parent, *out.parent.parents) if not each.exists()]
    try:
        with _own_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with _locked_aside(out) as temporary:
            yield temporary
            with _own_errors(out):
                temporary.replace(out)
    finally:
        for parent in missing:  # innermost first; a failed build leaves them empty
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _locked_aside(out: Path) -> Iterator[Path]:
    """Yield a directory beside ``out`` that is locked while this process lives."""
    prefix = f".narrowgate-{hashlib.sha256(out.name.encode()).hexdigest()[:12]}-"
    _sweep(out.parent, prefix)
    with _own_errors(out):
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.chmod(0o755)
        yield temporary
    finally:
        os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed builds left: directories with that prefix that nobody holds locked."""
    for remains in parent.glob(f"{prefix}*"):
        owner = remains.with_name(remains.name.partition(_PRUNED)[0])
        if not _is_locked(owner):
            shutil.rmtree(remains, ignore_errors=True)


def _is_locked(directory: Path) -> bool:
    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def _own_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unusable(out, error) from None


def _unusable(out: Path, error: Exception) -> BuildError:
    reason = getattr(error, "strerror", None) or error
    return BuildError(f"cannot write --out {str(out)!r} ({reason}): name another directory")
