"""Calibration text from a data set on a Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from compression.errors import CalibrationError
from compression.parquet_text import SUFFIX, require_parquet
from compression.recipe import HUB

_SUFFIXES = (".txt", ".jsonl")
_TRAIN = "train"


def hub_file(text: str) -> Path:
    """Return a file of the data set ``hub:org/dataset``.

    It is the first .txt or .jsonl file, else a .parquet file: the first called ``train``, or the
    first of all. Where the hub cannot be reached, it is the one that was fetched before.

    Raises:
        CalibrationError: there is no such data set, it has no such file, it cannot be fetched, or
            Parquet cannot be read here.
    """
    name = text.removeprefix(HUB)
    try:
        siblings = HfApi().dataset_info(name).siblings or []
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _refusal(text, error) from None
    except Exception as error:  # the library lets the kinds of its HTTP client through
        return _fetched_before(text, error)
    file = _first([each.rfilename for each in siblings], text)
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise _refusal(text, error) from None


def _fetched_before(text: str, error: Exception) -> Path:
    try:
        directory = Path(
            snapshot_download(text.removeprefix(HUB), repo_type="dataset", local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise _refusal(text, error) from None
    inside = [each.relative_to(directory).as_posix() for each in directory.rglob("*")]
    return directory / _first(inside, text)


def _first(files: list[str], text: str) -> str:
    if found := sorted(file for file in files if file.endswith(_SUFFIXES)):
        return found[0]
    tables = sorted(file for file in files if file.endswith(SUFFIX))
    if not tables:
        raise CalibrationError(
            f"calibration.text {text!r} has no .txt, .jsonl or .parquet file: give a data set that "
            "has one, or a local text file"
        )
    # Before it is fetched, which takes long.
    require_parquet(text)
    return next((file for file in tables if _TRAIN in file), tables[0])


def _refusal(text: str, error: Exception) -> CalibrationError:
    reason = str(error).strip().partition("\n")[0]
    return CalibrationError(
        f"calibration.text {text!r} cannot be fetched ({reason}): check its name, the network and "
        "HF_TOKEN, or give a local text file"
    )
