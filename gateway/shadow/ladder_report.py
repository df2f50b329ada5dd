"""What is told of a ladder: log lines, events with their evidence, and the count of steps."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType

from gateway.registry import Metrics
from gateway.shadow.judge import Judge, Publish
from gateway.shadow.ladder_order import Ending
from gateway.shadow.ladder_rules import Act, Decision
from gateway.shadow.slices import ALL

logger = logging.getLogger(__name__)

REASONS: Mapping[Act, str] = MappingProxyType(
    {
        Act.STEP_UP: "drift",
        Act.START_CANARY: "return",
        Act.PROMOTE: "proven",
        Act.ROLL_BACK: "not_proven",
        Act.ROUTE_SLICES: "slice_drift",
        Act.GIVE_BACK_SLICES: "slice_ok",
        Act.RESTORE: "restored",
    }
)
"""The metric's closed set; the event has the numbers."""

_FROM_THE_LEFT = frozenset({Act.STEP_UP, Act.ROUTE_SLICES})


class LadderReport:
    """Tells what happens to one model's ladder."""

    def __init__(
        self,
        model: str,
        pinned: frozenset[str],
        *,
        judge: Judge,
        metrics: Metrics,
        publish: Publish,
    ) -> None:
        self._model = model
        self._slices = pinned | {ALL}
        self._judge = judge
        self._metrics = metrics
        self._publish = publish

    def done(self, decision: Decision, left: str) -> None:
        """Count a step and tell of it."""
        steps = self._metrics.counters["ladder_steps_total"]
        reason = decision.cause or REASONS[decision.act]
        steps.labels(self._model, left, decision.to or left, reason).inc()
        self.tell(decision, left, "done")

    def ended(self, variant: str, ending: Ending) -> None:
        """Count the end of a canary that an operator asked for."""
        ends = self._metrics.counters["canaries_ended_total"]
        ends.labels(self._model, variant, ending).inc()

    def tell(self, decision: Decision, left: str, result: str) -> None:
        """Tell of a decision and its result.

        It was ``done``, ``failed``, ``superseded``, ``refused``, ``lost``, ``dry``, ``ordered`` or
        ``withdrawn``.
        """
        logger.warning("%s: %s (%s): %s", self._model, decision.name, result, decision.reason)
        fields = {
            "model": self._model,
            "act": decision.name,
            "from": left,
            "to": decision.to,
            "slices": list(decision.slices),
            "result": result,
            "reason": decision.reason,
            "cause": decision.cause or REASONS.get(decision.act),
            "evidence": self._evidence(decision, left),
        }
        self._publish("ladder_step", fields)

    def _evidence(self, decision: Decision, left: str) -> list[dict[str, object]]:
        """Return what is known of the rung that the decision is about."""
        about = left if decision.act in _FROM_THE_LEFT else decision.to or left
        slices = frozenset(decision.slices) or self._slices
        found = [each for each in self._judge.alarms(self._model, about) if each.slice in slices]
        if not found:
            verdicts = self._judge.verdicts(self._model, about)
            names = decision.slices or (ALL,)
            found = [verdicts[name] for name in names if name in verdicts]
        return [asdict(each) for each in found]
