"""What is said of a slice: the four states, the verdict with its numbers, and its changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gateway.shadow.slices import ALL
from gateway.shadow.tolerance import Source


class State(StrEnum):
    """What the sequential tests say of a slice now."""

    LEARNING = "learning"
    """Not enough evidence yet for either of the next two."""
    OK = "ok"
    """The mean of divergences, each cut at the monitor's largest value (ten tolerances),
    was shown below the tolerance, and nothing disproved it since. Rare huge ones weigh little.
    """
    DRIFT = "drift"
    """The mean divergence was shown to be above the tolerance; left by new evidence only."""
    STALE = "stale"
    """Requests are served, but none has been scored for a while."""


class Reason(StrEnum):
    """What the evidence showed."""

    SHOWN_OK = "the upper bound fell below the tolerance"
    SHOWN_DRIFT = "the lower bound rose above the tolerance"
    ALARM = "the detector reached its threshold"
    RECOVERED = "the upper bound since the alarm fell below the tolerance"
    STILL_DRIFT = "the lower bound since the alarm rose above the tolerance"
    UNSCORED = "requests are served, but none is scored"
    SCORED_AGAIN = "requests are scored again"
    CHANGED = "an engine reads a fixed text otherwise than at the build"
    AS_BUILT = "the engines read fixed texts as at the build, or are others"
    BEGUN_ANEW = "it is a canary, which only what is scored from now on can prove"


@dataclass(frozen=True, slots=True)
class SinceBuild:
    """A fixed text that an engine reads otherwise than a sound one; distances in nats a token."""

    text: str
    distance: float
    limit: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A slice at one moment; divergences are in nats a token, times in seconds since the epoch.

    Mean and bounds are of what was scored since the tests began, or since the alarm, or since it
    became a canary; they count each request with its mean, cut at the largest divergence that
    matters.
    """

    slice: str
    state: State
    n: int
    mean: float
    lower: float
    upper: float
    tolerance: float | None
    """None while it is learned from live traffic."""
    tolerance_source: Source | None
    log10_e: float
    """Evidence of damage by the detector: its value's logarithm, 0 at least."""
    since: float | None
    """When it came into this state, or began anew in it; None if it was so from the beginning."""
    last_scored: float | None
    confirmed: float | None = None
    """When ``drift`` was last shown by evidence; it begins anew whenever it was."""
    since_build: SinceBuild | None = None
    """What shows that the engine changed since the build, without any request."""

    @property
    def excess(self) -> float:
        """Return the lower bound over the tolerance: above 1 is shown damage.

        Of what changed since the build it is the distance over its limit.
        """
        if self.since_build is not None:
            return self.since_build.distance / self.since_build.limit
        return self.lower / self.tolerance if self.tolerance else 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A verdict that changed, with the evidence as it was at that moment."""

    slice: str
    before: State
    after: State
    reason: Reason
    time: float
    evidence: Verdict


@dataclass(frozen=True, slots=True)
class Summary:
    """A whole variant in one state, and its worst slice."""

    state: State
    """``drift`` if any slice is in it, else that of ``all``."""
    worst: Verdict | None
    """The slice with the largest excess; None before anything was scored."""


def summarize(verdicts: Iterable[Verdict]) -> Summary:
    """Return the verdicts of all slices of a variant in short."""
    every = list(verdicts)
    whole = next((each.state for each in every if each.slice == ALL), State.LEARNING)
    state = State.DRIFT if any(each.state is State.DRIFT for each in every) else whole
    scored = [each for each in every if each.n or each.since_build]
    return Summary(state, max(scored, key=_badness, default=None))


def _badness(verdict: Verdict) -> tuple[bool, float, float]:
    ratio = verdict.mean / verdict.tolerance if verdict.tolerance else 0.0
    return verdict.state is State.DRIFT, verdict.excess, ratio
