"""The calibration text of every peer: the very windows that our own quantizers read."""

import json
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.peers.exchange import CALIBRATION
from compression.calibration_text import WINDOW_TOKENS, calibration_windows
from compression.recipe import Calibration


def write_calibration(checkpoint: Path, work: Path) -> None:
    """Write the windows of a recipe's default calibration as token ids."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    windows = calibration_windows(Calibration(), tokenizer, WINDOW_TOKENS).tolist()
    (work / CALIBRATION).write_text(json.dumps(windows), encoding="utf-8")
