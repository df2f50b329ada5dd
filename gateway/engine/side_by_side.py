"""Texts read by several models side by side: what is measured at each position."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from compression.evaluation import Window
from compression.events import OnProgress, Progress
from compression.fidelity import TokenScores, require_finite, score_tokens
from gateway.engine.decode_path import decoded_rows, score_decode_path
from gateway.engine.decode_speed import Decoder

_BLOCK_ROWS = 128
"""Logits are made of so many positions at a time: a window's would take 100 MB a model.

Fewer would come near the row counts where a layer's kernel changes, and with it the rounding.
"""

Cut = Mapping[str, Sequence[Window]]
"""The windows of each slice."""


class Runner(Decoder, Protocol):
    """What is needed of a loaded model."""

    def hidden(self, ids: list[int], /) -> Tensor:
        """Read a whole text and return its final hidden states ``[len(ids), hidden_size]``."""
        ...

    def logits(self, hidden: Tensor, /) -> Tensor:
        """Return float32 logits ``[rows, vocab_size]`` of some of these states."""
        ...

    def info(self) -> dict[str, Any]:
        """Return what is loaded: bytes and bits of the live weights, kernels."""
        ...


@dataclass(slots=True)
class Live:
    """A model in memory and what was measured of it."""

    name: str
    runner: Runner
    scores: dict[str, list[TokenScores]] = field(default_factory=dict)
    decode_path: list[TokenScores] = field(default_factory=list)

    def logits(self, hidden: Tensor, rows: slice, slice_name: str) -> Tensor:
        """Return finite logits of some rows of ``hidden``."""
        logits = self.runner.logits(hidden[rows])
        require_finite(logits, recipe=self.name, slice_name=slice_name)
        return logits


@dataclass(slots=True)
class Counter:
    """Tokens read of all, reported as they are."""

    on_progress: OnProgress
    total: int
    done: int = 0

    def add(self, tokens: int, detail: str) -> None:
        """Count more tokens and say by whom and of what they were read."""
        self.done += tokens
        self.on_progress(Progress("compare", self.done, self.total, "tokens", detail))


def score(models: Sequence[Live], windows: Cut, counter: Counter) -> None:
    """Read each window by the full model, which comes first, and score the others against it.

    No logits are kept: they are made of a few positions at a time, by all models in turn.

    Raises:
        FidelityError: a model gives infinities or no numbers.
    """
    for name, parts in windows.items():
        for window in parts:
            states: list[Tensor] = []
            for model in models:
                states.append(model.runner.hidden(list(window.token_ids)))
                counter.add(len(window.token_ids), f"{model.name} on {name}")
            for rows in blocks(window.rows):
                targets = window.token_ids[rows.start + 1 : rows.stop + 1]
                expected = models[0].logits(states[0], rows, name)
                for model, hidden in zip(models[1:], states[1:], strict=True):
                    measured = score_tokens(expected, model.logits(hidden, rows, name), targets)
                    model.scores.setdefault(name, []).append(measured)
            if window is parts[0]:
                _decode(models, states, window, name, counter)


def _decode(
    models: Sequence[Live],
    states: Sequence[Tensor],
    window: Window,
    slice_name: str,
    counter: Counter,
) -> None:
    """Decode the end of a window by each model that has read it."""
    rows = decoded_rows(window)
    # In a block as large as those that are scored, so that the same kernel makes the logits.
    block = slice(max(0, rows.stop - max(_BLOCK_ROWS, len(rows))), rows.stop)
    for model, hidden in zip(models, states, strict=True):
        if rows:
            one_pass = model.logits(hidden, block, slice_name)[rows.start - rows.stop :]
            stepwise = score_decode_path(
                model.runner, one_pass, window, recipe=model.name, slice_name=slice_name
            )
            model.decode_path.append(stepwise)
        counter.add(rows.stop, f"{model.name} token by token on {slice_name}")


def blocks(rows: slice) -> Iterator[slice]:
    """Cut positions into blocks of at least :data:`_BLOCK_ROWS`, or all of them if they are fewer.

    Never into smaller ones: the kernels for few rows round in another way.
    """
    count = rows.stop - rows.start
    pieces = max(1, count // _BLOCK_ROWS)
    for piece in range(pieces):
        yield slice(
            rows.start + piece * count // pieces, rows.start + (piece + 1) * count // pieces
        )
