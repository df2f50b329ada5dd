"""The text on which inputs of layers are observed, as windows of token ids."""

import random

import torch
from torch import Tensor

from compression.calibration_documents import CalibrationText, read_calibration_text
from compression.errors import CalibrationError
from compression.evaluation import Tokenizer, special_prefix
from compression.recipe import Calibration

WINDOW_TOKENS = 512
"""Tokens that a model sees at once."""


def calibration_windows(
    calibration: Calibration,
    tokenizer: Tokenizer,
    context: int,
    text: CalibrationText | None = None,
) -> Tensor:
    """Return int64 token ids ``[windows, tokens]`` of at least the tokens asked for.

    ``text`` is that of the calibration, read now where it is not given.

    Documents are drawn from the files in turn, so that each file has an equal share as long as it
    lasts, and run on from one window into the next. Each window begins with the tokenizer's own
    special tokens, such as a begin-of-text token, as every prompt does.

    Raises:
        CalibrationError: the text cannot be read, or has fewer tokens than asked for.
    """
    prefix = special_prefix(tokenizer)
    width = min(WINDOW_TOKENS, context) - len(prefix)
    wanted = -(-calibration.tokens // width) * width
    shuffle = random.Random(calibration.seed)
    if text is None:
        text = read_calibration_text(calibration.text)
    files = [list(documents) for documents in text.files]
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
    windows = torch.tensor(ids[:wanted]).view(-1, width)
    marks = torch.tensor(prefix, dtype=windows.dtype).expand(len(windows), -1)
    return torch.cat([marks, windows], dim=1)
