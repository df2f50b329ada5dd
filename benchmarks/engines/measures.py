"""What every engine is asked: prompts of a length, so many at a time, answers of a length."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.engines.checkpoints import LLAMA_1B, SMOLLM2, ensure_checkpoint
from benchmarks.engines.replies import Replies
from compression.calibration_text import calibration_windows
from compression.recipe import Calibration
from compression.tokenizer_file import load_tokenizer

LONG_LIMIT_S = 20.0
"""What took longer is not repeated in later rounds; a prompt that would take longer is not sent."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of an engine."""

    name: str
    title: str
    unit: str
    prompt: int
    tokens: int
    figure: Callable[[Replies], float]
    streams: int = 1
    is_rate: bool = False
    """More is better."""
    is_ours_alone: bool = False
    """The goal looks at our engine alone: peers are asked in the first round only."""

    def best(self, figures: Sequence[float]) -> float:
        """Return the better end."""
        return max(figures) if self.is_rate else min(figures)

    def times(self, ours: float, theirs: float) -> float:
        """Return how many times as good ours is."""
        return ours / theirs if self.is_rate else theirs / ours


def _decode_ms(replies: Replies) -> float:
    return replies.ms_per_token


def _first_ms(replies: Replies) -> float:
    return 1e3 * replies.first_s


def _rate(replies: Replies) -> float:
    return replies.tokens_per_s


ONE = Measure("one", "one stream", "ms/token", 200, 48, _decode_ms)
FIRST = Measure("first", "first token, 512-token prompt", "ms", 512, 1, _first_ms)
MANY = Measure("many", "16 streams", "tokens/s", 16, 64, _rate, streams=16, is_rate=True)
LONG = Measure(
    "long", "one stream at 2,000 tokens", "ms/token", 2000, 32, _decode_ms, is_ours_alone=True
)
ALL = (ONE, FIRST, MANY, LONG)
MEASURES = {SMOLLM2: ALL, LLAMA_1B: (replace(ONE, prompt=64, tokens=24),)}


class Prompts:
    """Stretches of text as token ids; two rounds never share a beginning."""

    def __init__(self, model: str) -> None:
        self._ids = _text(model, ensure_checkpoint(model))

    def draw(self, measure: Measure, turn: int) -> list[list[int]]:
        """Return the prompts of a measure in a round: the same ones for every engine."""
        order = random.Random(f"{measure.name} {turn}")
        return [self._stretch(order, measure.prompt) for _ in range(measure.streams)]

    def _stretch(self, order: random.Random, count: int) -> list[int]:
        # The first token is another one each time: no cache of prefixes has seen the prompt.
        start = order.randrange(len(self._ids))
        return [order.choice(self._ids), *(self._ids * 2)[start : start + count - 1]]


def _text(model: str, directory: Path) -> list[int]:
    if model == LLAMA_1B:  # random weights: random words
        order = random.Random(0)
        return [order.randrange(1000, 100_000) for _ in range(8000)]
    windows = calibration_windows(Calibration(tokens=8192), load_tokenizer(directory), 8192)
    return [int(token) for token in windows.flatten()]
