"""Where a ladder stands: what was done with it, and where each decision leads from there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.shadow.ladder_order import Ending, Outcome
from gateway.shadow.ladder_rules import Act, Canary, Cause, Decision, Step

MAX_STEPS = 256
"""Steps that are remembered; far more than the rules allow within the times they look back."""


@dataclass(frozen=True, slots=True)
class Standing:
    """All that the keeper of a ladder must not forget; times are in seconds since the epoch."""

    home: str
    """The rung that the operator chose."""
    active: str
    steps: tuple[Step, ...] = ()
    canary: Canary | None = None
    routes: Mapping[str, str] = field(default_factory=dict)
    """By slice, the rung that answers it."""
    origin: str | None = None
    """The rung that the settings name, where a promoted canary is the home; None: it is that."""
    ordered: Canary | None = None
    """What an operator asked to be tried, while it is being loaded."""
    ended: Outcome | None = None
    """What became of the last canary that an operator asked for."""

    @property
    def canary_order(self) -> Canary | None:
        """Return what an operator asked to be tried, loaded or not."""
        if self.canary is not None and self.canary.terms is not None:
            return self.canary
        return self.ordered

    def after(self, decision: Decision, now: float) -> "Standing":
        """Return where the ladder stands when a decision has been carried out.

        Raises:
            ValueError: it is not one to be carried out.
        """
        if decision.to is None:
            raise ValueError(f"{decision.act} leads nowhere")
        left = self.left_by(decision)
        step = Step(
            now, decision.act, left, decision.to, decision.slices, decision.reason, decision.cause
        )
        done = replace(self, steps=(*self.steps, step)[-MAX_STEPS:])
        match decision.act:
            case Act.STEP_UP:
                over = done.without_order(Ending.SUPERSEDED, decision.reason, now)
                return replace(over, active=decision.to, canary=None, routes={})
            case Act.PROMOTE:
                over = done
                if self.canary_order is not None:
                    over = done.without_order(Ending.PROMOTED, decision.reason, now)
                    over = replace(over, home=decision.to, origin=self.origin or self.home)
                return replace(over, active=decision.to, canary=None, routes={})
            case Act.START_CANARY:
                canary = Canary(decision.to, now, 0, decision.terms)
                return replace(done, canary=canary, ordered=None)
            case Act.ROLL_BACK:
                is_hand = decision.cause is Cause.WITHDRAWN
                ending = Ending.WITHDRAWN if is_hand else Ending.ROLLED_BACK
                return replace(done.without_order(ending, decision.reason, now), canary=None)
            case Act.ROUTE_SLICES:
                return done.with_routes({**self.routes, **_all_to(decision)})
            case Act.GIVE_BACK_SLICES:
                return done.without_routes(decision.slices)
        raise ValueError(f"{decision.act} is not carried out")

    def without_order(self, ending: Ending, reason: str, now: float) -> "Standing":
        """Return it with an operator's canary at its end; as it is where there is none."""
        order = self.canary_order
        if order is None:
            return self
        ended = Outcome(order.variant, order.since, now, ending, reason)
        canary = None if order is self.canary else self.canary
        return replace(self, canary=canary, ordered=None, ended=ended)

    def left_by(self, decision: Decision) -> str:
        """Return the rung that requests leave by a decision."""
        if decision.act in {Act.ROUTE_SLICES, Act.GIVE_BACK_SLICES}:
            return self.routes.get(decision.slices[0], self.active)
        return self.active

    def with_routes(self, routes: Mapping[str, str]) -> "Standing":
        """Return it with these routes and no others."""
        return replace(self, routes=dict(routes))

    def without_routes(self, slices: tuple[str, ...]) -> "Standing":
        """Return it with these slices going where all others go."""
        return self.with_routes({k: rung for k, rung in self.routes.items() if k not in slices})


def _all_to(decision: Decision) -> dict[str, str]:
    return dict.fromkeys(decision.slices, decision.to or "")
