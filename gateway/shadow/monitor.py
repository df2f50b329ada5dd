"""The monitor of one variant: divergences of scored requests in, verdicts of its slices out."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from gateway.errors import SettingsError
from gateway.shadow.monitor_state import VERSION, MonitorState, is_same
from gateway.shadow.slices import ALL, require_slices
from gateway.shadow.tolerance import FalseAlarmBudget, Tolerances
from gateway.shadow.track import Track
from gateway.shadow.trial import Strictness
from gateway.shadow.verdict import Change, Verdict
from gateway.validation import first_problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MonitorRules:
    """How sure a verdict must be, and when silence makes it stale."""

    budget: FalseAlarmBudget = field(default_factory=FalseAlarmBudget)
    confidence: float = 0.95
    """That no bound of any slice is ever wrong on one side."""
    clip: float = 10.0
    """A request counts for so many tolerances at most."""
    stale_after_s: float = 600.0
    stale_after_requests: int = 100
    """Both are needed: so long, and so many served requests, without a scored one."""

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise SettingsError(
                f"'confidence' is {self.confidence}: use 0.5 or more, and less than 1"
            )
        if not 2 <= self.clip <= 1000:
            raise SettingsError(f"'clip' is {self.clip}: use 2 to 1000 tolerances")
        if self.stale_after_s <= 0 or self.stale_after_requests < 1:
            raise SettingsError(
                f"'stale_after_s' is {self.stale_after_s} and 'stale_after_requests' "
                f"{self.stale_after_requests}: both must be above 0"
            )


class Monitor:
    """All slices of one variant; times are in seconds since the epoch.

    ``digest`` stands for everything that the scores depend on: the recipe's result and the
    reference. What was learned under another digest is worth nothing. The weights of a reference
    are known when it has run: a digest without them agrees with any that has them.

    Raises:
        SettingsError: a tolerance was set by hand for what is no slice.
    """

    def __init__(
        self,
        digest: str,
        slices: Sequence[str],
        tolerances: Tolerances,
        rules: MonitorRules | None = None,
    ) -> None:
        require_slices(tolerances.rules.by_hand, slices, setting="tolerance")
        self.digest = digest
        self.rules = rules or MonitorRules()
        self.stale_after_requests = self.rules.stale_after_requests
        """As the rules say, until another share of the requests is scored."""
        self.tolerances = tolerances
        strictness = Strictness(
            error=(1 - self.rules.confidence) / len(slices),
            threshold=self.rules.budget.threshold(len(slices)),
            clip=self.rules.clip,
        )
        self._tracks = {name: Track(name, tolerances, strictness) for name in slices}

    def observe(self, divergences: Mapping[str, float], now: float) -> list[Change]:
        """Take in one scored request: the mean divergence in each of its slices, in nats a token.

        Raises:
            ValueError: a slice is not one of those that are monitored.
        """
        unknown = divergences.keys() - self._tracks.keys()
        if unknown:
            raise ValueError(f"no slice {min(unknown)!r} is monitored: give {ALL!r} and such")
        changes: list[Change] = []
        for name, divergence in divergences.items():
            changes += self._tracks[name].add(divergence, now)
        return changes

    def served(self, now: float, slices: Iterable[str] = (ALL,), count: float = 1.0) -> None:
        """Note a served request, scored or not, in the slices that are known of it.

        ``count`` is of how many served ones it was drawn.
        """
        for name in slices:
            self._tracks[name].served(now, count)

    def watch(self, now: float) -> list[Change]:
        """Return which verdicts have become stale, or fresh again, since the last look."""
        is_all_stale = self._is_stale(self._tracks[ALL], now)
        changes: list[Change] = []
        for track in self._tracks.values():
            is_stale = self._is_stale(track, now) or (is_all_stale and track.was_scored)
            changes += track.cover(is_stale, now)
        return changes

    def try_again(self, now: float, unless_since: float | None = None) -> list[Change]:
        """Let what comes from now on decide alone what is ok, as for a canary.

        What began anew at ``unless_since`` or later, and what drifts, goes on where such a moment
        is named. Returns what changed.
        """
        tracks = self._tracks.values()
        return [each for track in tracks for each in track.try_again(now, unless_since)]

    def verdicts(self) -> dict[str, Verdict]:
        """Return the verdicts of all slices."""
        return {name: track.verdict() for name, track in self._tracks.items()}

    def identify(self, digest: str) -> bool:
        """Take over a digest that agrees and knows more; return whether it agrees."""
        if not is_same(self.digest, digest):
            return False
        self.digest = max(self.digest, digest, key=len)
        return True

    def to_state(self) -> dict[str, Any]:
        """Return all that is known, as plain data fit for JSON."""
        return {
            "version": VERSION,
            "digest": self.digest,
            "slices": {name: track.to_state() for name, track in self._tracks.items()},
        }

    def restore(self, state: object) -> bool:
        """Take over what an earlier monitor knew; return whether there was anything to take.

        Nothing is taken of another digest, or of a state that cannot be read; and nothing for
        a slice whose tolerance is another one now.
        """
        try:
            known = MonitorState.model_validate(state)
        except ValidationError as error:
            where, reason = first_problem(error)
            logger.warning("verdicts begin anew: %r of what was kept: %s", where or "state", reason)
            return False
        if not self.identify(known.digest):
            return False
        for name, kept in known.slices.items():
            if name in self._tracks:
                self._tracks[name].restore(kept)
        return True

    def _is_stale(self, track: Track, now: float) -> bool:
        return track.is_unscored(
            now,
            seconds=self.rules.stale_after_s,
            requests=self.stale_after_requests,
        )
