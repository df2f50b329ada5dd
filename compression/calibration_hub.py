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
from compression.recipe import HUB

_SUFFIXES = (".txt", ".jsonl")


def hub_file(text: str) -> Path:
    """Return the first text file (.txt, .jsonl) of the data set ``hub:org/dataset``.

    Where the hub cannot be reached, it is the one that was fetched before.

    Raises:
        CalibrationError: there is no such data set, it has no such file, or it cannot be fetched.
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
    found = sorted(file for file in files if file.endswith(_SUFFIXES))
    if not found:
        raise CalibrationError(
            f"calibration.text {text!r} has no .txt or .jsonl file: give a data set that has one, "
            "or a local text file"
        )
    return found[0]


def _refusal(text: str, error: Exception) -> CalibrationError:
    reason = str(error).strip().partition("\n")[0]
    return CalibrationError(
        f"calibration.text {text!r} cannot be fetched ({reason}): check its name, the network and "
        "HF_TOKEN, or give a local text file"
    )
