"""The text on which inputs of layers are observed, as windows of token ids."""

import random
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from compression.calibration_hub import PREFIX, hub_documents
from compression.errors import CalibrationError
from compression.evaluation import Tokenizer
from compression.recipe import BUILT_IN, Calibration

WINDOW_TOKENS = 512
"""Tokens that a model sees at once."""
_SEPARATOR = "\n\n---\n\n"


def calibration_windows(calibration: Calibration, tokenizer: Tokenizer, context: int) -> Tensor:
    """Return int64 token ids ``[windows, tokens]`` of at least the tokens asked for.

    Documents are drawn from the files in turn, so that each file has an equal share as long as it
    lasts, and run on from one window into the next.

    Raises:
        CalibrationError: the text cannot be read, or has fewer tokens than asked for.
    """
    width = min(WINDOW_TOKENS, context)
    wanted = -(-calibration.tokens // width) * width
    shuffle = random.Random(calibration.seed)
    files = [list(documents) for documents in _files(calibration.text)]
    for documents in files:
        shuffle.shuffle(documents)
    ids: list[int] = []
    shares = [0] * len(files)
    while len(ids) < wanted and any(files):
        least = min((index for index, left in enumerate(files) if left), key=shares.__getitem__)
        encoded = tokenizer.encode(files[least].pop(), add_special_tokens=False)
        shares[least] += len(encoded)
        ids += encoded
    if len(ids) < wanted:
        raise CalibrationError(
            f"calibration.text {calibration.text!r} has {len(ids)} tokens, {wanted} are asked for: "
            "give more text or lower calibration.tokens"
        )
    return torch.tensor(ids[:wanted]).view(-1, width)


def _files(text: str) -> list[list[str]]:
    """Return the documents of each file."""
    if text == BUILT_IN:
        directory = resources.files("compression").joinpath("calibration_texts")
        bodies = {each.name: each.read_text(encoding="utf-8") for each in directory.iterdir()}
        return [bodies[name].split(_SEPARATOR) for name in sorted(bodies)]
    if text.startswith(PREFIX):
        return [hub_documents(text)]
    path = Path(text)
    if not path.exists():
        raise CalibrationError(
            f"calibration.text {text!r} does not exist: give a text file, a directory of them, "
            "or hub:org/dataset"
        )
    paths = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
    return [_documents(each) for each in paths if not each.name.startswith(".")]


def _documents(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split(_SEPARATOR)
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError:
        reason = "it is no UTF-8 text"
    raise CalibrationError(f"calibration.text: cannot read {str(path)!r}: {reason}")
