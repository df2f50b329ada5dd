"""The judge: scored requests in, verdicts out, as events, gauges and in the ledger."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from compression.recipe import FULL
from gateway.registry import Metrics
from gateway.shadow.drift_gauges import forget_verdicts, record_verdicts
from gateway.shadow.figures import Floor, Gap
from gateway.shadow.ledger import Ledger
from gateway.shadow.monitor import Monitor
from gateway.shadow.rules import Rules
from gateway.shadow.scored import ScoredRequest, entry_of
from gateway.shadow.since_build import overlaid
from gateway.shadow.slices import ALL
from gateway.shadow.subject import Subject
from gateway.shadow.tolerance import Tolerances
from gateway.shadow.verdict import (
    Change,
    Reason,
    SinceBuild,
    State,
    Summary,
    Verdict,
    summarize,
)
from gateway.shadow_settings import Estimator

logger = logging.getLogger(__name__)

EVERY_S = 1.0
"""How old a verdict may be that is shown."""
_KEEP_EVERY_S = 30.0

Publish = Callable[[str, dict[str, Any]], None]
Look = Callable[[str, str], Subject | None]
"""Says what a variant of a model is now; None: it is not loaded."""


@dataclass(slots=True)
class _Watched:
    """One variant, its monitor, and its verdicts at the last look."""

    monitor: Monitor
    recipe_digest: str
    estimator: Estimator
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    num_scored: int = 0
    """Since this process watches it."""
    alarms: dict[str, Verdict] = field(default_factory=dict)
    """Of slices in drift, what was known when they came into it."""
    gap: Gap = field(default_factory=Gap)
    is_touched: bool = True


class Judge:
    """Holds a monitor for every variant that serves scored models; a sink of the shadow.

    Times are in seconds since the epoch.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        rate_of: Callable[[str], float],
        reference_of: Callable[[str], str],
        look: Look,
        metrics: Metrics,
        publish: Publish,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rules = rules
        self.ledger = ledger
        self._rate_of = rate_of
        self._reference_of = reference_of
        self._look = look
        self._metrics = metrics
        self._publish = publish
        self._clock = clock
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._floors: dict[str, Floor] = {}
        self._changed: dict[tuple[str, str], Mapping[str, SinceBuild]] = {}
        """By variant and slice, what its engines show to have changed since the build."""
        self._kept: Mapping[str, Any] | None = {} if ledger is None else None
        """What monitors knew before this start; None: it is not read yet."""
        self._has_news = False

    # -- what comes in ----------------------------------------------------------------------

    def take(self, record: ScoredRequest) -> None:
        """Take in one scored request; never blocks."""
        entry = entry_of(record)
        if self.ledger is not None:
            self.ledger.add(entry)
        if record.variant == FULL:
            floor = self._floors.get(record.model, Floor())
            self._floors[record.model] = floor.with_one(record.divergence.mean_bound)
            return
        watched = self._find(record.model, record.variant)
        if watched is None or watched.recipe_digest != entry.recipe_digest:
            return  # it was scored after its variant had gone
        if watched.estimator != record.estimator:
            return  # it says something else than the verdict does
        if record.estimator == "exact":
            found = record.divergence
            watched.gap = watched.gap.with_one(found.mean_kl, found.mean_bound)
        watched.num_scored += 1
        watched.is_touched = True
        divergences = {name: score.divergence for name, score in entry.slices.items()}
        changes = watched.monitor.observe(divergences, record.time)
        self._tell_scored(record.model, record.variant, changes)

    def served(self, model: str, variant: str) -> None:
        """Note a request that an engine has begun to answer, drawn or not."""
        if variant == FULL:
            return
        watched = self._watched.get((model, variant))
        if watched is None and self._rate_of(model):
            watched = self._find(model, variant)
        if watched is not None:
            watched.monitor.served(self._clock())

    def drawn(self, model: str, variant: str, slices: Iterable[str]) -> None:
        """Note the slices of a request that was drawn and answered, before it is scored.

        That it was served at all is told apart: see :meth:`served`.
        """
        watched = self._watched.get((model, variant))
        rate = self._rate_of(model)
        if watched is not None and rate:
            names = [name for name in slices if name != ALL]
            watched.monitor.served(self._clock(), names, count=1 / rate)

    def try_again(self, model: str, variant: str, unless_since: float | None = None) -> None:
        """Let what comes from now on decide alone whether a variant is ok, as for a canary.

        What began anew at ``unless_since`` or later, and what drifts, goes on where such a moment
        is named.
        """
        watched = self._find(model, variant)
        if watched is not None:
            changes = watched.monitor.try_again(self._clock(), unless_since)
            self._tell_scored(model, variant, changes)
            watched.verdicts = self._now(model, variant, watched.monitor)
            watched.is_touched = self._has_news = True

    def hold(self, model: str, variant: str, changed: Mapping[str, SinceBuild]) -> None:
        """Let the slices drift that a variant's engines show to have changed since the build.

        It holds until it is told otherwise; empty: nothing changed. What is not watched yet takes
        none of it, so it is to be told again and again.
        """
        known = self._changed.get((model, variant), {})
        watched = self._find(model, variant) if changed or known else None
        if watched is None or changed == known:
            return
        before, self._changed[model, variant] = watched.verdicts, changed
        watched.verdicts = self._now(model, variant, watched.monitor)
        # A slice that nobody asked for is shown while it drifts, and not behind that.
        forget_verdicts(self._metrics, model, variant)
        watched.is_touched = True
        reasons = dict.fromkeys(known, Reason.AS_BUILT) | dict.fromkeys(changed, Reason.CHANGED)
        moved = [
            Change(name, before[name].state, verdict.state, reasons[name], self._clock(), verdict)
            for name, verdict in watched.verdicts.items()
            if name in reasons and verdict.state is not before[name].state
        ]
        self._tell(model, variant, moved)
        for name in known.keys() - changed.keys():
            if (verdict := watched.verdicts[name]).state is State.DRIFT:
                watched.alarms[name] = verdict  # scores show it as well

    # -- what is known ----------------------------------------------------------------------

    def verdicts(self, model: str, variant: str) -> Mapping[str, Verdict]:
        """Return the verdicts by slice, a second old at most; none of what is not watched."""
        watched = self._watched.get((model, variant))
        return {} if watched is None else watched.verdicts

    def alarms(self, model: str, variant: str) -> list[Verdict]:
        """Return what was known of each slice in drift when it came into it, since the start."""
        watched = self._watched.get((model, variant))
        return [] if watched is None else list(watched.alarms.values())

    def summary(self, model: str, variant: str) -> Summary | None:
        """Return the verdicts of a variant in short; None: it is not watched."""
        verdicts = self.verdicts(model, variant)
        return summarize(verdicts.values()) if verdicts else None

    def num_scored(self, model: str, variant: str) -> int:
        """Return how many of its requests were scored since this process watches it."""
        watched = self._watched.get((model, variant))
        return 0 if watched is None else watched.num_scored

    def estimator(self, model: str, variant: str) -> Estimator | None:
        """Return how the divergences of its verdicts are found; None: it is not watched."""
        watched = self._watched.get((model, variant))
        return None if watched is None else watched.estimator

    def gap(self, model: str, variant: str) -> Gap | None:
        """Return what top-k scores would leave out; None: nothing was scored exactly."""
        watched = self._watched.get((model, variant))
        return None if watched is None or not watched.gap.num_requests else watched.gap

    def floor(self, model: str) -> Floor | None:
        """Return the noise floor of a model; None: it was not measured yet."""
        return self._floors.get(model)

    # -- the whole life ---------------------------------------------------------------------

    async def run(self) -> None:
        """Read what was known, look every second, and keep what is known, for ever."""
        if self.ledger is None:
            await self._tend()
            return
        if self._kept is None:
            self._kept = await self.ledger.states()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.ledger.run())
            group.create_task(self._tend())

    def look(self) -> None:
        """Bring verdicts and gauges up to date."""
        now = self._clock()
        for model, variant in list(self._watched):
            watched = self._find(model, variant)
            if watched is None:
                continue
            patience = self.rules.monitor_at(self._rate_of(model)).stale_after_requests
            watched.monitor.stale_after_requests = patience
            changes = watched.monitor.watch(now)
            self._tell_scored(model, variant, changes)
            # Of what changed since the build it is now that it is so.
            if watched.is_touched or changes or self._changed.get((model, variant)):
                watched.is_touched, self._has_news = False, True
                watched.verdicts = self._now(model, variant, watched.monitor)
                verdicts = watched.verdicts.values()
                record_verdicts(self._metrics, model, variant, verdicts, watched.alarms)

    async def keep(self) -> None:
        """Keep what is known, unless it is kept already."""
        if self.ledger is not None and self._has_news and self._kept is not None:
            self._has_news = False
            states = {_name(*key): each.monitor.to_state() for key, each in self._watched.items()}
            await self.ledger.keep_states(states)

    async def close(self) -> None:
        """Keep what is known and close the ledger."""
        if self.ledger is not None:
            self._has_news = True
            await self.keep()
            await self.ledger.close()

    # -- inside -----------------------------------------------------------------------------

    async def _tend(self) -> None:
        kept_at = time.monotonic()
        while True:
            self.look()
            if time.monotonic() - kept_at >= _KEEP_EVERY_S:
                kept_at = time.monotonic()
                await self.keep()
            await asyncio.sleep(EVERY_S)

    def _find(self, model: str, variant: str) -> _Watched | None:
        """Return what watches a variant, anew if it is another one than before."""
        watched = self._watched.get((model, variant))
        subject = self._look(model, variant)
        if subject is None or self._kept is None:
            return watched
        digest = subject.digest(self._reference_of(model))
        if watched is not None and watched.monitor.identify(digest):
            return watched
        tolerances = Tolerances(self.rules.tolerance, subject.fidelity)
        rules = self.rules.monitor_at(self._rate_of(model))
        monitor = Monitor(digest, self.rules.slices, tolerances, rules)
        name = _name(model, variant)
        if watched is None and name in self._kept and monitor.restore(self._kept[name]):
            logger.info("the verdicts of %s are taken over", name)
        forget_verdicts(self._metrics, model, variant)
        watched = self._watched[model, variant] = _Watched(
            monitor, subject.recipe_digest, subject.estimator
        )
        watched.verdicts = self._now(model, variant, monitor)
        return watched

    def _now(self, model: str, variant: str, monitor: Monitor) -> Mapping[str, Verdict]:
        changed = self._changed.get((model, variant), {})
        watched = self._watched.get((model, variant))
        before = {} if watched is None else watched.verdicts
        return overlaid(monitor.verdicts(), changed, self._clock(), before)

    def _tell_scored(self, model: str, variant: str, changes: Sequence[Change]) -> None:
        """Tell what scores changed; a slice that fixed texts hold in drift stays there."""
        held = self._changed.get((model, variant), {})
        self._tell(model, variant, [each for each in changes if each.slice not in held])

    def _tell(self, model: str, variant: str, changes: Sequence[Change]) -> None:
        for change in changes:
            alarms = self._watched[model, variant].alarms
            if change.after is State.DRIFT:
                alarms[change.slice] = change.evidence
            else:
                alarms.pop(change.slice, None)
            level = logging.WARNING if change.after in _BAD else logging.INFO
            logger.log(
                level,
                "%s: %s: %s -> %s (%s; mean %.4g nats, %d scored)",
                _name(model, variant),
                change.slice,
                change.before,
                change.after,
                change.reason,
                change.evidence.mean,
                change.evidence.n,
            )
            fields = {
                "model": model,
                "variant": variant,
                "slice": change.slice,
                "from": change.before,
                "to": change.after,
                "reason": change.reason,
                "evidence": asdict(change.evidence),
            }
            self._publish("verdict", fields)
            counter = self._metrics.counters["verdict_changes_total"]
            counter.labels(model, variant, change.slice, change.after).inc()


_BAD = frozenset({State.DRIFT, State.STALE})


def _name(model: str, variant: str) -> str:
    return f"{model}@{variant}"
