"""How far a search is and how long it may still take, as one bar."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from compression.events import OnProgress, Progress

TRIALS = 3
"""Artifacts that a search within a budget mostly builds."""
_TRIAL_LAYERS = 30.0
"""How many layers of the table take as long as building and measuring an artifact, until one is
built."""
_QUANTIZE = 0.85
"""The part of a trial's time that goes into building."""
_ACTIONS = {"quantize": "compressing", "measure": "measuring"}


@dataclass(slots=True)
class _Stretch:
    """Work that has begun: how much of it is done, since when."""

    since: float
    done: float = 0.0


class SearchProgress:
    """Folds what a search does into one stage, ``search``; other events pass through."""

    def __init__(
        self,
        on_progress: OnProgress,
        layers: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = on_progress
        self._layers = layers
        self._layers_left = 0
        self._trials_left = 0
        self._clock = clock
        self._start = clock()
        self._table: _Stretch | None = None
        self._trial: _Stretch | None = None
        self._number = 0
        self._layer_s: float | None = None
        self._trial_s: float | None = None
        self._told: tuple[int, str] | None = None

    def expect(self, trials: int) -> None:
        """Say how many artifacts will probably be built."""
        self._trials_left = trials

    def begin_table(self, known: int) -> None:
        """Say that the costs of the layers are measured, of which some may be known."""
        self._table = _Stretch(self._clock())
        self._layers_left = self._layers - known
        self._emit(self._layer_detail())

    def layer(self) -> None:
        """Say that the costs of one more layer are known."""
        if self._table is None:
            return
        self._table.done += 1
        self._layers_left -= 1
        self._layer_s = (self._clock() - self._table.since) / self._table.done
        self._emit(self._layer_detail())

    def begin_trial(self) -> None:
        """Say that one more artifact is asked for."""
        self._number += 1
        self._trials_left = max(0, self._trials_left - 1)
        self._trial = _Stretch(self._clock())

    def end_trial(self) -> None:
        """Say that the artifact is there and measured."""
        # What was found in the store says nothing of how long a build takes.
        if self._trial is not None and self._trial.done > 0:
            self._trial_s = self._clock() - self._trial.since
        self._trial = None

    def end(self) -> None:
        """Say that the search is over."""
        self._tell(Progress("search", 100, 100, "steps"))

    def on_progress(self, progress: Progress) -> None:
        """Take an event of a build or a measurement."""
        if self._trial is None or progress.stage not in _ACTIONS:
            self._tell(progress)
            return
        share = progress.done / progress.total if progress.total else 0.0
        is_built = progress.stage == "measure"
        done = _QUANTIZE + (1 - _QUANTIZE) * share if is_built else _QUANTIZE * share
        self._trial.done = max(self._trial.done, done)
        self._emit(f"artifact {self._number}: {_ACTIONS[progress.stage]}")

    def remaining_s(self) -> float | None:
        """Return the seconds that are expected to be left; None where nothing tells yet."""
        trial_s = self._trial_s
        if trial_s is None and self._trial is not None and self._trial.done > 0.05:
            trial_s = (self._clock() - self._trial.since) / self._trial.done
        if trial_s is None and self._layer_s is not None:
            trial_s = _TRIAL_LAYERS * self._layer_s
        if trial_s is None:
            return None
        trials = self._trials_left + (0.0 if self._trial is None else 1 - self._trial.done)
        return self._layers_left * (self._layer_s or 0.0) + trials * trial_s

    def _layer_detail(self) -> str:
        return f"costs of layer {self._layers - self._layers_left} of {self._layers}"

    def _emit(self, detail: str) -> None:
        left = self.remaining_s()
        percent = 0
        if left is not None:
            passed = self._clock() - self._start
            # Never back, and not at the end before it is.
            percent = min(99, round(100 * passed / (passed + left))) if passed > 0 else 0
            percent = max(percent, 0 if self._told is None else self._told[0])
            detail = f"{detail}, {_about(left)}"
        if self._told != (percent, detail):
            self._told = (percent, detail)
            self._tell(Progress("search", percent, 100, "steps", detail))


def _about(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes else "less than a minute left"
