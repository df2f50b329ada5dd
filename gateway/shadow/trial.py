"""The sequential tests of one slice: is it within its tolerance, and did it leave it since?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from gateway.shadow.confidence import ConfidenceSequence
from gateway.shadow.detector import Detector
from gateway.shadow.verdict import Reason, State


@dataclass(frozen=True, slots=True)
class Strictness:
    """What all slices of a variant are tried by."""

    error: float
    """Probability with which a bound of one slice may ever be wrong, on either side."""
    threshold: float
    """Of the detector."""
    clip: float
    """A request counts for so many tolerances at most."""


class Trial:
    """One slice with its tolerance in nats: ``learning``, then ``ok`` or ``drift``.

    Two tests run side by side. The confidence sequence leaves ``learning`` for either state; the
    detector raises an alarm from any. From ``drift`` leads one way only: a confidence sequence that
    began after the alarm shows a mean below the tolerance. It begins anew whenever it has shown the
    opposite, or is told to, so that a repair need not make up for all the damage before it. Each
    beginning has a smaller error, so that together they err no more often than one.

    Told to try again, ``ok`` is ``learning`` once more, and what was before it proves nothing. The
    beginnings of that kind have smaller errors in the same way, beside that of the first proof. The
    detector never hears of it, so it cries wolf as rarely as before.
    """

    __slots__ = ("_attempt", "_detector", "_recovery", "_rules", "sequence", "state", "tolerance")

    def __init__(self, tolerance: float, rules: Strictness) -> None:
        self.tolerance = tolerance
        self.state = State.LEARNING
        self._rules = rules
        self._detector = Detector(rules.threshold)
        self._attempt = 0
        self._recovery = self.sequence = self._new_sequence()

    def add(self, divergence: float) -> Reason | None:
        """Take in the mean divergence of one request; return what that showed, if anything."""
        ratio = self._ratio(divergence)
        value = ratio / self._rules.clip
        self.sequence.add(value)
        if self._recovery is not self.sequence:
            self._recovery.add(value)
        alarm = self._detector.add(ratio)
        if self.state is State.DRIFT:
            return self._look_for_recovery()
        if alarm:
            return Reason.ALARM
        return self._look_for_proof() if self.state is State.LEARNING else None

    def enter(self, reason: Reason) -> None:
        """Come into the state that the reason stands for."""
        if reason in {Reason.SHOWN_DRIFT, Reason.ALARM}:
            self.state = State.DRIFT
            self._attempt = 1
            self.sequence = self._new_sequence()
            self._recovery = self._new_sequence()
            self._detector = Detector(self._rules.threshold)
            return
        self.state = State.OK
        self.sequence = self._recovery
        if reason is Reason.RECOVERED:
            self._attempt = 0
            self._detector = Detector(self._rules.threshold)

    def try_again(self) -> None:
        """Let what comes from now on decide alone whether it is ok."""
        if self.state is State.DRIFT:
            self._begin_recovery()
            return
        self.state = State.LEARNING
        if self.sequence.n:
            self._begin_recovery()
            self.sequence = self._recovery

    @property
    def error(self) -> float:
        """Return the probability with which a bound of the sequence may ever be wrong."""
        is_first = self.state is State.DRIFT or not self._attempt
        return self._rules.error if is_first else self._error_of_attempt()

    @property
    def log10_e(self) -> float:
        """Return the decimal logarithm of the detector's value, 0 at least."""
        return math.log10(max(1.0, self._detector.e_value))

    @property
    def worst(self) -> float:
        """Return the divergence at which a request is cut, in nats a token."""
        return self._rules.clip * self.tolerance

    def to_state(self) -> dict[str, Any]:
        """Return all that is known, as plain data."""
        return {
            "tolerance": self.tolerance,
            "clip": self._rules.clip,
            "state": self.state.value,
            "attempt": self._attempt,
            "sequence": self.sequence.to_state(),
            "recovery": self._recovery.to_state(),
            "detector": self._detector.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], rules: Strictness) -> Self:
        """Return the trial that :meth:`to_state` described, with these rules.

        Raises:
            ValueError: the detector is of another kind.
        """
        trial = cls(state["tolerance"], rules)
        trial.state = State(state["state"])
        trial._attempt = state["attempt"]
        trial.sequence = trial._recovery = ConfidenceSequence.from_state(state["sequence"])
        if trial.state is State.DRIFT:
            trial._recovery = ConfidenceSequence.from_state(state["recovery"])
        trial._detector = Detector.from_state(state["detector"], threshold=rules.threshold)
        return trial

    def _ratio(self, divergence: float) -> float:
        """Return the divergence in tolerances; what is no number is the worst there is."""
        if not math.isfinite(divergence):
            return self._rules.clip
        return min(max(divergence / self.tolerance, 0.0), self._rules.clip)

    def _look_for_proof(self) -> Reason | None:
        limit, error = 1.0 / self._rules.clip, self.error
        if self.sequence.is_below(limit, error=error):
            return Reason.SHOWN_OK
        return Reason.SHOWN_DRIFT if self.sequence.is_above(limit, error=error) else None

    def _look_for_recovery(self) -> Reason | None:
        limit, error = 1.0 / self._rules.clip, self._error_of_attempt()
        if self._recovery.is_below(limit, error=error):
            return Reason.RECOVERED
        if self._recovery.is_above(limit, error=error):
            self._begin_recovery()
            return Reason.STILL_DRIFT
        return None

    def _error_of_attempt(self) -> float:
        return self._rules.error / (self._attempt * (self._attempt + 1))

    def _begin_recovery(self) -> None:
        self._attempt += 1
        self._recovery = self._new_sequence()

    def _new_sequence(self) -> ConfidenceSequence:
        return ConfidenceSequence(guess=1.0 / self._rules.clip)
