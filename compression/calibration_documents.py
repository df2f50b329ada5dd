"""The calibration text that a recipe names, as the documents of each of its files; no torch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from compression.errors import CalibrationError
from compression.parquet_text import SUFFIX, parquet_documents
from compression.recipe import BUILT_IN, HUB

SEPARATOR = "\n\n---\n\n"
"""What stands between two documents of a text file."""
_PIECE_CHARACTERS = 4096
"""Longer documents are cut at paragraphs, so that a seed can draw from all of them."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """The documents of each file, in the order of the files."""

    name: str
    """What the recipe calls it."""
    files: tuple[tuple[str, ...], ...]

    @property
    def digest(self) -> str:
        """Return the SHA-256 (hex) of all documents, whatever the files are called."""
        body = json.dumps(self.files, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()


def read_calibration_text(name: str) -> CalibrationText:
    """Return the text that ``calibration.text`` names: built-in, a file, a directory or ``hub:``.

    Raises:
        CalibrationError: it does not exist, cannot be read or fetched, or is no text.
    """
    return CalibrationText(name, tuple(tuple(documents) for documents in _files(name)))


def documents_of(path: Path, *, name: str) -> list[str]:
    """Return the documents of one file.

    A ``.jsonl`` file has one in the field ``text`` of each line and a ``.parquet`` file one in the
    column ``text`` of each row; any other file has a line of three hyphens between empty lines from
    one document to the next.

    Raises:
        CalibrationError: the file cannot be read, or is no such text.
    """
    if path.suffix == SUFFIX:
        found = parquet_documents(path, name=name)
        return [piece for document in found for piece in _pieces(document)]
    try:
        body = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            found = [str(json.loads(line)["text"]) for line in body.splitlines() if line.strip()]
        else:
            found = body.split(SEPARATOR)
    except OSError as error:
        raise CalibrationError(
            f"calibration.text {name!r}: cannot read {str(path)!r} ({error.strerror}): check its "
            "permissions"
        ) from None
    except UnicodeDecodeError:
        raise CalibrationError(
            f"calibration.text {name!r}: cannot read {str(path)!r}, it is no UTF-8 text: convert "
            "it or move it away"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise CalibrationError(
            f"calibration.text {name!r}: a line of {path.name!r} is no JSON object with the key "
            "'text': correct it, or give a text file"
        ) from None
    return [piece for document in found for piece in _pieces(document)]


def _files(name: str) -> Iterator[list[str]]:
    if name.startswith(HUB):
        # It takes a second to import, which texts of this machine do not need.
        from compression.calibration_hub import hub_file

        yield documents_of(hub_file(name), name=name)
        return
    if name == BUILT_IN:
        directory = Path(str(resources.files("compression").joinpath("calibration_texts")))
    else:
        directory = Path(name)
    for path in _paths(directory, name):
        yield documents_of(path, name=name)


def _paths(path: Path, name: str) -> list[Path]:
    """Return the file itself, or the files of a directory by name, hidden ones left out."""
    try:
        if path.is_dir():
            inside = sorted(path.iterdir())
            return [each for each in inside if each.is_file() and not each.name.startswith(".")]
        is_file, exists = path.is_file(), path.exists()
    except OSError as error:
        raise CalibrationError(
            f"calibration.text {name!r} cannot be read ({error.strerror}): check path and "
            "permissions"
        ) from None
    if is_file:
        return [path]
    what = "is neither a file nor a directory" if exists else "does not exist"
    raise CalibrationError(
        f"calibration.text {name!r} {what}: give a text file, a directory of them, or "
        "hub:org/dataset"
    )


def _pieces(document: str) -> Iterator[str]:
    """Yield a document in pieces that end at a paragraph, else a line, else a word."""
    while len(document) > _PIECE_CHARACTERS:
        ends = (document.rfind(mark, 1, _PIECE_CHARACTERS) for mark in ("\n\n", "\n", " "))
        end = next((found for found in ends if found > 0), _PIECE_CHARACTERS)
        yield document[:end]
        document = document[end:]
    if document.strip():
        yield document
