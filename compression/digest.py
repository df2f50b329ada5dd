"""SHA-256 of checkpoint files, remembered by path, size and time: a start need not re-read them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from compression.artifact import companions
from compression.events import OnProgress, Progress, ignore
from compression.facts import CheckpointFacts
from compression.paths import cache_home

_BLOCK_BYTES = 4 * 1024 * 1024


def source_digest(facts: CheckpointFacts, on_progress: OnProgress) -> str:
    """Return one digest over everything of a checkpoint that an artifact is made from.

    That is the config, the tokenizer and its companions, and every weight file.
    """
    return checkpoint_digest(facts.directory, facts.files, on_progress)


def checkpoint_digest(directory: Path, files: Sequence[str], on_progress: OnProgress) -> str:
    """Return the same of a checkpoint with these weight files, of whatever architecture."""
    whole = hashlib.sha256()
    for path in (directory / "config.json", *companions(directory)):
        whole.update(f"{path.name}:{hash_file(path)}\n".encode())
    for file, digest in weight_digests(directory, files, on_progress).items():
        whole.update(f"{file}:{digest}\n".encode())
    return whole.hexdigest()


def weight_digests(
    directory: Path, files: Sequence[str], on_progress: OnProgress = ignore
) -> dict[str, str]:
    """Return the SHA-256 (hex) of each file, from memory where it has not changed since."""
    known = _read_memory()
    total = sum((directory / file).stat().st_size for file in files)
    done = 0
    digests: dict[str, str] = {}
    learned: dict[str, str] = {}
    for file in files:
        path = directory / file
        key = _identity(path)
        if key not in known:
            learned[key] = hash_file(path, done, total, on_progress)
        digests[file] = known.get(key) or learned[key]
        done += path.stat().st_size
    if learned:
        _remember(learned)
    return digests


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def hash_file(path: Path, before: int = 0, total: int = 0, on_progress: OnProgress = ignore) -> str:
    """Return the SHA-256 (hex) of a file; progress counts from ``before`` bytes to ``total``."""
    digest = hashlib.sha256()
    done = before
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            on_progress(Progress("hash", done, total, "bytes", path.name))
    return digest.hexdigest()


def _memory_path() -> Path:
    return cache_home() / "digests.json"


def _read_memory() -> Mapping[str, str]:
    try:
        memory = json.loads(_memory_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _remember(learned: Mapping[str, str]) -> None:
    """Add to the memory; two writers at once both keep what they learned.

    A memory that cannot be written costs the next start some time and nothing else.
    """
    path = _memory_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            temporary = path.with_suffix(f".{os.getpid()}")
            known = {**_read_memory(), **learned}
            # Files that are gone would fill the memory without end.
            kept = {key: known[key] for key in known if Path(key.partition("|")[0]).exists()}
            body = json.dumps(kept, indent=0)
            temporary.write_text(body, encoding="utf-8")
            temporary.replace(path)
