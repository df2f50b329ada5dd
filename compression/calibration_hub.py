"""Calibration text from a data set on a Hugging Face hub."""

import json
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from compression.errors import CalibrationError

PREFIX = "hub:"
_SUFFIXES = (".txt", ".jsonl")


def hub_documents(text: str) -> list[str]:
    """Return the documents of the first text file of ``hub:org/dataset``.

    A ``.txt`` file is one document, a ``.jsonl`` file has one in the field ``text`` of each line.

    Raises:
        CalibrationError: there is no such data set, it has no such file, or it cannot be fetched.
    """
    name = text.removeprefix(PREFIX)
    try:
        siblings = HfApi().dataset_info(name).siblings or []
        files = sorted(each.rfilename for each in siblings if each.rfilename.endswith(_SUFFIXES))
        if not files:
            raise CalibrationError(
                f"calibration.text {text!r} has no .txt or .jsonl file: give a data set that has "
                "one, or a local text file"
            )
        path = Path(hf_hub_download(name, files[0], repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CalibrationError(
            f"calibration.text {text!r} cannot be fetched ({reason}): check its name, the network "
            "and HF_TOKEN, or give a local text file"
        ) from None
    return _documents(path, text)


def _documents(path: Path, text: str) -> list[str]:
    try:
        body = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            return [body]
        return [str(json.loads(line)["text"]) for line in body.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError):
        raise CalibrationError(
            f"calibration.text {text!r}: {path.name!r} is not UTF-8 text, or a line of it is no "
            "JSON object with the key 'text': give another data set, or a local text file"
        ) from None
