"""One slice of a variant through its life: baseline, trial, staleness."""

import math
from typing import Any

from gateway.shadow.confidence import ConfidenceSequence
from gateway.shadow.monitor_state import TrackState
from gateway.shadow.tolerance import Source, Tolerance, Tolerances
from gateway.shadow.trial import Strictness, Trial
from gateway.shadow.verdict import Change, Reason, State, Verdict


class Track:
    """What is known of one slice; times are in seconds since the epoch.

    Where no tolerance is known, the first requests are a baseline that says what is usual. That
    tells later damage only: what was there from the first request on is taken for usual, up to the
    ceiling of the rules.
    """

    def __init__(self, name: str, tolerances: Tolerances, strictness: Strictness) -> None:
        self.name = name
        self._tolerances = tolerances
        self._strictness = strictness
        self._worst = tolerances.rules.ceiling * strictness.clip
        self._baseline = ConfidenceSequence(guess=1 / strictness.clip)
        self._tolerance: Tolerance | None = None
        self._trial: Trial | None = None
        self._since: float | None = None
        self._last_scored: float | None = None
        self._confirmed: float | None = None
        self._stale_since: float | None = None
        self._num_unscored = 0.0
        self._unscored_since = 0.0
        self._try_against(tolerances.of(name))

    def add(self, divergence: float, now: float) -> list[Change]:
        """Take in the mean divergence of a request in this slice; return what changed."""
        self._num_unscored = 0.0
        changes = self.cover(False, now)
        self._last_scored = now
        if self._trial is None:
            self._learn(divergence)
        elif (reason := self._trial.add(divergence)) is Reason.STILL_DRIFT:
            self._confirmed = now
        elif reason is not None:
            evidence = self.verdict()
            self._trial.enter(reason)
            self._since = now
            self._confirmed = now if self._trial.state is State.DRIFT else None
            changes.append(
                Change(self.name, evidence.state, self._trial.state, reason, now, evidence)
            )
        return changes

    def try_again(self, now: float, unless_since: float | None = None) -> list[Change]:
        """Let what comes from now on decide alone whether it is ok; return what changed.

        What began anew at ``unless_since`` or later, and what drifts, goes on where such a moment
        is named.
        """
        if unless_since is not None:
            has_begun = self._since is not None and self._since >= unless_since
            if has_begun or self._state is State.DRIFT:
                return []
        evidence, before = self.verdict(), self._state
        if self._trial is not None:
            self._trial.try_again()
        if before is State.DRIFT:
            return []
        self._since = now
        after = self.verdict().state
        if after is evidence.state:
            return []
        return [Change(self.name, evidence.state, after, Reason.BEGUN_ANEW, now, evidence)]

    def served(self, now: float, count: float = 1.0) -> None:
        """Note a request that was served, scored or not, and that stands for so many."""
        if not self._num_unscored:
            self._unscored_since = now
        self._num_unscored += count

    def is_unscored(self, now: float, *, seconds: float, requests: int) -> bool:
        """Return whether so many requests in so long a time were served without a score."""
        return self._num_unscored >= requests and now - self._unscored_since >= seconds

    @property
    def was_scored(self) -> bool:
        """Return whether there was ever a score."""
        return self._last_scored is not None

    def cover(self, is_stale: bool, now: float) -> list[Change]:
        """Make the verdict stale, or no longer; return what changed.

        ``drift`` is never covered: silence is no evidence of a repair.
        """
        if is_stale == (self._stale_since is not None) or self._state is State.DRIFT:
            return []
        evidence = self.verdict()
        self._stale_since = now if is_stale else None
        after = State.STALE if is_stale else self._state
        reason = Reason.UNSCORED if is_stale else Reason.SCORED_AGAIN
        return [Change(self.name, evidence.state, after, reason, now, evidence)]

    def verdict(self) -> Verdict:
        """Return what is said of the slice."""
        sequence, scale, error = self._baseline, self._worst, self._strictness.error
        if self._trial is not None:
            sequence, scale = self._trial.sequence, self._trial.worst
            error = self._trial.error
        lower, upper = sequence.bounds(error=error)
        is_stale = self._stale_since is not None
        return Verdict(
            slice=self.name,
            state=State.STALE if is_stale else self._state,
            n=sequence.n,
            mean=sequence.mean * scale if sequence.n else 0.0,
            lower=lower * scale,
            upper=upper * scale,
            tolerance=self._tolerance.nats if self._tolerance else None,
            tolerance_source=self._tolerance.source if self._tolerance else None,
            log10_e=self._trial.log10_e if self._trial else 0.0,
            since=self._stale_since if is_stale else self._since,
            last_scored=self._last_scored,
            confirmed=self._confirmed,
        )

    def to_state(self) -> dict[str, Any]:
        """Return all that is known, as plain data."""
        return {
            "since": self._since,
            "last_scored": self._last_scored,
            "confirmed": self._confirmed,
            "is_learned": self._is_learned,
            "worst": self._worst,
            "baseline": self._baseline.to_state(),
            "trial": self._trial.to_state() if self._trial else None,
        }

    def restore(self, kept: TrackState) -> None:
        """Take over what was known, unless it was known against another tolerance."""
        if self._tolerances.of(self.name) is None and kept.worst == self._worst:
            self._baseline = ConfidenceSequence.from_state(kept.baseline.model_dump())
            self._last_scored = kept.last_scored
            if kept.trial is not None and kept.is_learned:
                self._try_against(Tolerance(kept.trial.tolerance, Source.LEARNED))
        if kept.trial is None or self._tolerance is None:
            return
        now = (self._tolerance.nats, self._strictness.clip)
        if (kept.trial.tolerance, kept.trial.clip) == now:
            self._trial = Trial.from_state(kept.trial.model_dump(), self._strictness)
            self._since, self._confirmed = kept.since, kept.confirmed
            self._last_scored = kept.last_scored

    @property
    def _state(self) -> State:
        return self._trial.state if self._trial else State.LEARNING

    @property
    def _is_learned(self) -> bool:
        return self._tolerance is not None and self._tolerance.source is Source.LEARNED

    def _learn(self, divergence: float) -> None:
        share = divergence / self._worst if math.isfinite(divergence) else 1.0
        baseline = self._baseline
        baseline.add(min(max(share, 0.0), 1.0))
        if baseline.n >= self._tolerances.rules.baseline_requests:
            standard_error = math.sqrt(baseline.scatter) / baseline.n
            self._try_against(
                self._tolerances.learned(baseline.mean * self._worst, standard_error * self._worst)
            )

    def _try_against(self, tolerance: Tolerance | None) -> None:
        self._tolerance = tolerance
        self._trial = Trial(tolerance.nats, self._strictness) if tolerance else None
