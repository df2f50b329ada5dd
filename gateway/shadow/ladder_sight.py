"""What a ladder's keeper sees: the situation that decisions depend on, and what is shown of it."""

from dataclasses import asdict, replace
from typing import Any

from gateway.pool.pool import Pool
from gateway.pool.state import Shape
from gateway.shadow.judge import Judge
from gateway.shadow.ladder_canary import CanaryEngines
from gateway.shadow.ladder_failures import Failures
from gateway.shadow.ladder_rules import Canary, Decision, LadderRules, Situation
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.slices import ALL


class LadderSight:
    """Looks at one model's rungs, at what is said of them, and at its canary."""

    def __init__(
        self,
        model: str,
        rules: LadderRules,
        *,
        pool: Pool,
        judge: Judge,
        failures: Failures,
        engines: CanaryEngines,
    ) -> None:
        self._model = model
        self._rules = rules
        self._pool = pool
        self._judge = judge
        self._failures = failures
        self._engines = engines
        self._scored_before = 0

    def count_from(self, rung: str, num_scored: int = 0) -> None:
        """Let a canary's count begin at so many; its engines are watched from now on."""
        self._scored_before = self._judge.num_scored(self._model, rung) - num_scored
        self._engines.watch(rung)

    def counted(self, canary: Canary | None, shape: Shape) -> Canary | None:
        """Return the canary with what was scored so far; None: it is none any longer."""
        if canary is None or shape.canary != canary.variant:
            return None
        num_scored = self._judge.num_scored(self._model, canary.variant) - self._scored_before
        # A count that fell began anew with another digest.
        self._scored_before = min(self._scored_before, self._scored_before + num_scored)
        return replace(canary, num_scored=max(0, num_scored))

    def situation(self, standing: Standing, now: float) -> Situation:
        """Return all that a decision depends on."""
        shape, headroom = self._pool.shape(self._model), self._pool.headroom(self._model)
        canary = standing.canary
        return Situation(
            now=now,
            ladder=shape.ladder,
            active=shape.active,
            home=standing.home,
            verdicts={
                name: found
                for name in shape.ladder
                if (found := self._judge.verdicts(self._model, name))
            },
            steps=standing.steps,
            routed=standing.routes,
            canary=canary,
            trouble=self._engines.trouble(canary.variant) if canary else None,
            ordered=standing.ordered.variant if standing.ordered else None,
            free_bytes=headroom.free,
            needed_bytes=headroom.needed,
            failed=self._failures.look(now),
        )

    def ladder(self, standing: Standing, decision: Decision | None) -> dict[str, Any]:
        """Return where the ladder stands, as plain data."""
        shape = self._pool.shape(self._model)
        return {
            "rungs": list(shape.ladder),
            "active": shape.active,
            "home": standing.home,
            "canary": None if standing.canary is None else asdict(standing.canary),
            "ordered": None if standing.ordered is None else asdict(standing.ordered),
            "ended": None if standing.ended is None else asdict(standing.ended),
            "routes": dict(standing.routes),
            "mode": self._rules.mode,
            "dry_run": self._rules.dry_run,
            "decision": None if decision is None else decision.name,
            "reason": None if decision is None else decision.reason,
            "steps": [asdict(step) for step in standing.steps[-10:]],
        }

    def canary(self, canary: Canary, state: str, decision: Decision | None) -> dict[str, Any]:
        """Return on what terms a canary is tried, and how far it is, as plain data."""
        terms, rules = canary.terms, self._rules
        verdicts = self._judge.verdicts(self._model, canary.variant)
        return {
            "variant": canary.variant,
            "state": state,
            "by": "operator" if terms else "ladder",
            "share": terms.share if terms else rules.canary_share,
            "since": canary.since,
            "scored": canary.num_scored,
            "requests": terms.num_requests if terms else rules.canary_requests,
            "patience_s": terms.patience_s if terms else rules.canary_patience_s,
            "reason": None if decision is None else decision.reason,
            "verdicts": [
                asdict(verdicts[name]) for name in sorted((rules.pinned | {ALL}) & verdicts.keys())
            ],
        }
