"""Verdicts and decisions together: a rung that breaks is left, and comes back when repaired."""

import random
from dataclasses import dataclass, field

from gateway.shadow.ladder import decide
from gateway.shadow.ladder_rules import Act, Canary, LadderRules, Situation, Step
from gateway.shadow.monitor import Monitor
from gateway.shadow.slices import ALL, all_slices
from gateway.shadow.tolerance import ToleranceRules, Tolerances
from gateway.shadow.verdict import State

RULES = LadderRules()
TOLERANCE = 0.036
BROKEN = range(5_000, 30_000)
"""Seconds in which int4 is three times worse than before."""


def make_monitor(digest: str) -> Monitor:
    """Return the monitor of a rung."""
    rules = ToleranceRules(by_hand={ALL: TOLERANCE})
    return Monitor(digest, all_slices(), Tolerances(rules, None))


@dataclass
class Service:
    """One scored request a second; whatever is decided is done."""

    choose: random.Random = field(default_factory=lambda: random.Random(3))
    monitors: dict[str, Monitor] = field(
        default_factory=lambda: {name: make_monitor(name) for name in ("int4", "int8")}
    )
    active: str = "int4"
    canary: Canary | None = None
    steps: list[Step] = field(default_factory=list)
    served_broken: int = 0

    def second(self, now: int) -> None:
        """Serve and score one request, and decide once a minute."""
        name, share = self.active, RULES.canary_share
        if self.canary is not None and self.choose.random() < share:
            name = self.canary.variant
            self.canary = Canary(name, self.canary.since, self.canary.num_scored + 1)
        usual = 0.02 if name == "int4" else 0.004
        is_broken = name == "int4" and now in BROKEN
        self.served_broken += is_broken
        divergence = self.choose.gammavariate(0.5, 2 * usual * (3 if is_broken else 1))
        self.monitors[name].observe({ALL: divergence}, now)
        if now % 60 == 0:
            self.act(now)

    def act(self, now: int) -> None:
        """Decide, and do it."""
        verdicts = {name: each.verdicts() for name, each in self.monitors.items()}
        seen = Situation(
            now, ("int4", "int8"), self.active, "int4", verdicts, tuple(self.steps), {}, self.canary
        )
        decision = decide(seen, RULES)
        if decision.act is Act.STAY or decision.to is None:
            return
        self.steps.append(Step(now, decision.act, self.active, decision.to))
        self.canary = None
        if decision.act is Act.START_CANARY:
            self.canary = Canary(decision.to, now, 0)
            self.monitors[decision.to].try_again(now)
        elif decision.act is not Act.ROLL_BACK:
            self.active = decision.to


def test_a_rung_that_breaks_is_left_and_comes_back_when_repaired() -> None:
    """Left within minutes, tried in vain while it is broken, back for good when it is not."""
    service = Service()
    for now in range(90_000):
        service.second(now)
    acts = [step.act for step in service.steps]
    assert acts[:3] == [Act.STEP_UP, Act.START_CANARY, Act.ROLL_BACK]
    assert acts[-2:] == [Act.START_CANARY, Act.PROMOTE]
    assert acts.count(Act.STEP_UP) == acts.count(Act.PROMOTE) == 1
    assert service.steps[0].time - BROKEN.start < 600
    assert service.steps[-1].time > BROKEN.stop
    assert service.active == "int4"
    assert service.monitors["int4"].verdicts()[ALL].state is State.OK
    assert service.served_broken < 0.06 * len(BROKEN)
