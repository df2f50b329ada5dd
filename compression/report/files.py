"""Reports on disk: whole or not at all."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compression.errors import ReportError


def require_writable(path: Path, *, option: str) -> None:
    """Refuse, before the long work, a file that could not be written after it.

    Raises:
        ReportError: names the option and the path.
    """
    if path.is_dir():
        raise ReportError(f"{option} {str(path)!r} is a directory: name a file")
    parent = path.absolute().parent
    if not os.access(parent, os.W_OK | os.X_OK):
        reason = "is not writable" if parent.is_dir() else "does not exist"
        raise ReportError(f"{option} {str(path)!r}: {str(parent)!r} {reason}, name another file")


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Write the report as indented JSON, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    body = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(body, path)


def write_text(text: str, path: Path) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    write_aside(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` that takes its place once it is whole.

    Raises:
        ReportError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
