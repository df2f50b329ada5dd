"""What a decision about a model's ladder is made of: the rules, the situation, the decision."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum

from gateway.errors import SettingsError
from gateway.shadow.ladder_order import Terms
from gateway.shadow.slices import ALL
from gateway.shadow.verdict import State, Verdict


class Act(StrEnum):
    """What can be done with a ladder."""

    STAY = "stay"
    STEP_UP = "step_up"
    """Make a safer rung the active one; a canary and all routes end with it."""
    START_CANARY = "start_canary"
    """Give another rung a share of the traffic, and tell its monitor to try again."""
    PROMOTE = "promote"
    """Make the canary the active rung; all routes end with it."""
    ROLL_BACK = "roll_back"
    """End the canary; the active rung stays."""
    ROUTE_SLICES = "route_slices"
    """Send a share of some slices to a safer rung; the rest goes on to be scored where it was."""
    GIVE_BACK_SLICES = "give_back_slices"
    """End that for some slices."""
    RESTORE = "restore"
    """Take up what was done before a restart; nothing that is decided."""


class Cause(StrEnum):
    """Why something is done, where the act alone does not tell."""

    ORDERED = "ordered"
    """An operator asked for the canary."""
    WITHDRAWN = "withdrawn"
    """An operator ended it, or chose another rung."""
    BROKEN = "broken"
    """An engine of the canary was lost, or fails its requests."""


@dataclass(frozen=True, slots=True)
class LadderRules:
    """When to step; times are in seconds."""

    pinned: frozenset[str] = frozenset()
    """Slices whose drift counts as the model's; ``all`` always does."""
    route_slices: bool = False
    """Route a pinned slice to a safer rung instead of stepping with the whole model."""
    cool_down_s: float = 300.0
    """Between two steps of one kind."""
    return_after_s: float = 3600.0
    """Before a smaller rung is tried again; doubled after each time that it failed."""
    return_after_requests: int = 500
    """Scored requests of the active rung that come first."""
    max_returns: int = 4
    """In ``returns_window_s``."""
    returns_window_s: float = 86_400.0
    canary_share: float = 0.05
    canary_requests: int = 300
    """Scored requests of a canary before it is promoted."""
    canary_patience_s: float = 14_400.0
    dry_run: bool = False
    is_off: bool = False
    """Nothing is decided but what becomes of a canary that an operator asked for."""

    @property
    def mode(self) -> str:
        """Return its name in the settings."""
        return "off" if self.is_off else "dry-run" if self.dry_run else "on"

    def __post_init__(self) -> None:
        if not 0 < self.canary_share <= 0.5:
            raise SettingsError(
                f"'canary_share' is {self.canary_share}: use more than 0, and 0.5 at most"
            )
        for name in ("cool_down_s", "return_after_s", "returns_window_s", "canary_patience_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name!r} is {getattr(self, name)}: use seconds above 0")
        for name in ("return_after_requests", "canary_requests", "max_returns"):
            if getattr(self, name) < 0:
                raise SettingsError(f"{name!r} is {getattr(self, name)}: use 0 or more")


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done with the ladder."""

    time: float
    act: Act
    left: str
    to: str
    slices: tuple[str, ...] = ()
    """Those that were routed or given back."""
    reason: str = ""
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """A rung that takes a share of the traffic on trial."""

    variant: str
    since: float
    num_scored: int
    """Of its requests since it became the canary."""
    terms: Terms | None = None
    """What an operator asked for; None: the ladder tries it by its own rules."""


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a decision depends on."""

    now: float
    ladder: tuple[str, ...]
    """From the smallest rung to the safest."""
    active: str
    home: str
    """The rung that the operator chose: nothing smaller is ever tried."""
    verdicts: Mapping[str, Mapping[str, Verdict]]
    """By rung and slice; the full model has none."""
    steps: Sequence[Step] = ()
    """What was done so far, oldest first."""
    routed: Mapping[str, str] = field(default_factory=dict)
    """Slices that are sent elsewhere, with their rung."""
    canary: Canary | None = None
    trouble: str | None = None
    """What has become of the canary's engines, in words; None: they are well."""
    ordered: str | None = None
    """The rung that an operator asked to be tried, while it is being loaded."""
    free_bytes: int | None = None
    """Memory for another rung; None: no limit is known."""
    needed_bytes: Mapping[str, int] = field(default_factory=dict)
    """By rung, what it would take; a rung that is loaded needs none."""
    failed: Set[str] = frozenset()
    """Rungs that cannot be loaded now: that failed within a cool-down, or still end requests."""

    def verdict(self, variant: str, name: str) -> Verdict | None:
        """Return what is said of a slice of a rung."""
        return self.verdicts.get(variant, {}).get(name)

    def drifting(self, variant: str, names: frozenset[str]) -> list[Verdict]:
        """Return which of the slices drift on a rung, ``all`` first."""
        found = [self.verdict(variant, name) for name in sorted(names, key=lambda n: (n != ALL, n))]
        return [each for each in found if each is not None and each.state is State.DRIFT]

    def refuge(self, names: frozenset[str]) -> str | None:
        """Return the next safer rung that neither drifts there too nor failed to load.

        Where all drift, it is the safest that may load, and where all failed, the safest.
        None: the active rung is the safest.
        """
        safer = self.ladder[self.ladder.index(self.active) + 1 :]
        loadable = [each for each in safer if each not in self.failed]
        sound = [each for each in loadable if not self.drifting(each, names)]
        return next(iter(sound or loadable[-1:] or safer[-1:]), None)

    def is_safer(self, rung: str, *, than: str) -> bool:
        """Return whether a rung is above another one."""
        return self.ladder.index(rung) > self.ladder.index(than)

    @property
    def smaller(self) -> str | None:
        """Return the rung below the active one, if it may be tried."""
        place = self.ladder.index(self.active)
        return self.ladder[place - 1] if place > self.ladder.index(self.home) else None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why; in a dry run it is only told."""

    act: Act
    reason: str
    to: str | None = None
    slices: tuple[str, ...] = ()
    share: float = 1.0
    """Of the traffic that goes to ``to``."""
    is_dry: bool = False
    refused: "Decision | None" = None
    """What is not done for want of memory, where staying is the decision."""
    cause: Cause | None = None
    terms: Terms | None = None
    """Of a canary that an operator asked for, where it is to start."""

    @property
    def name(self) -> str:
        """Return the act's name, or in a dry run what would be done."""
        return f"would_{self.act}" if self.is_dry else self.act.value
