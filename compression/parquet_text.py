"""The texts of a Parquet file, which is what most data sets on a hub are stored as."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from compression.errors import CalibrationError

SUFFIX = ".parquet"
_COLUMN = "text"
_BATCH_ROWS = 1024
_MOST_CHARACTERS = 32_000_000
"""Files of data sets hold gigabytes; this is some hundred times what a calibration reads."""


def require_parquet(name: str) -> None:
    """Refuse the calibration text ``name`` where this environment cannot read Parquet.

    Raises:
        CalibrationError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise CalibrationError(
            f"calibration.text {name!r} is a Parquet file, which needs the parquet extra: "
            "pip install 'narrowgate[parquet]', or give a .txt or .jsonl file"
        )


def parquet_documents(path: Path, *, name: str) -> list[str]:
    """Return the column ``text`` of a file, from its beginning up to 32 million characters.

    Raises:
        CalibrationError: pyarrow is not installed, the file is no Parquet file, or it has no such
            column of strings.
    """
    require_parquet(name)
    return list(_documents(path, name))


def _documents(path: Path, name: str) -> Iterator[str]:
    # An optional dependency, and a large one.
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = {field.name: str(field.type) for field in file.schema_arrow}
            _require_texts(columns, path, name)
            characters = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[_COLUMN]):
                for text in filter(None, batch.column(0).to_pylist()):
                    yield text
                    characters += len(text)
                    if characters >= _MOST_CHARACTERS:
                        return
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CalibrationError(
            f"calibration.text {name!r}: {path.name!r} cannot be read as Parquet ({reason}): "
            "fetch it again, or give a text file"
        ) from None


def _require_texts(types: Mapping[str, str], path: Path, name: str) -> None:
    if types.get(_COLUMN) not in {"string", "large_string", "string_view"}:
        has = ", ".join(f"{column} ({kind})" for column, kind in types.items())
        raise CalibrationError(
            f"calibration.text {name!r}: {path.name!r} has no column 'text' of strings but {has}: "
            "give a data set that has one, or a text file"
        )
