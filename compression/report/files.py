"""Reports on disk: whole or not at all."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compression.errors import ReportError


def require_writable(paths: Mapping[str, Path | None]) -> None:
    """Refuse, before the long work, files that could not be written after it.

    Args:
        paths: by the options that name them; None where nothing is asked for.

    Raises:
        ReportError: names the option and the path.
    """
    taken: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        place = path.resolve()
        if place.is_dir():
            raise ReportError(f"{option} {str(path)!r} is a directory: name a file")
        if place.exists() and not place.is_file():
            raise ReportError(f"{option} {str(path)!r} is no regular file: name another one")
        if (other := taken.setdefault(place, option)) != option:
            raise ReportError(f"{option} and {other} name one file, {str(path)!r}: name two")
        _require_room(place, f"{option} {str(path)!r}")


def _require_room(place: Path, what: str) -> None:
    if not place.parent.is_dir():
        raise ReportError(f"{what}: {str(place.parent)!r} does not exist, name another file")
    temporary = _beside(place)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError:
        raise ReportError(
            f"{what}: {str(place.parent)!r} is not writable, name another file"
        ) from None


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

    Where ``path`` is a link, what it leads to is replaced.

    Raises:
        ReportError: the file cannot be written.
    """
    place = path.resolve()
    temporary = _beside(place)
    try:
        write(temporary)
        temporary.replace(place)
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.{os.getpid()}")
