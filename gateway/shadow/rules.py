"""What the settings of the shadow mean to the parts that judge."""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from gateway.shadow.ladder_rules import LadderRules
from gateway.shadow.ledger import LedgerRules
from gateway.shadow.monitor import MonitorRules
from gateway.shadow.slices import OwnSlices, all_slices, require_slices
from gateway.shadow.tolerance import FalseAlarmBudget, ToleranceRules
from gateway.shadow_settings import LedgerSettings, ShadowSettings, default_ledger_path

_SECONDS_A_DAY = 86_400.0
_SCORES_EXPECTED = 10
"""So many scores must have failed to come before silence means something."""


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of judging, checked against each other."""

    own_slices: tuple[OwnSlices, ...]
    slices: tuple[str, ...]
    """The names of all slices that are told apart."""
    tolerance: ToleranceRules
    monitor: MonitorRules
    ladder: LadderRules

    def monitor_at(self, rate: float) -> MonitorRules:
        """Return the rules of a monitor where this share of the requests is scored."""
        expected = ceil(_SCORES_EXPECTED / rate) if rate else 0
        patience = max(self.monitor.stale_after_requests, expected)
        return replace(self.monitor, stale_after_requests=patience)


def make_rules(settings: ShadowSettings) -> Rules:
    """Return the rules that the settings stand for.

    Raises:
        SettingsError: names a slice that is none, or own slices that cannot be.
    """
    said, ladder = settings.verdict, settings.ladder
    own = tuple(OwnSlices(key, values) for key, values in settings.slices.items())
    slices = all_slices(own)
    require_slices(said.tolerance, slices, setting="shadow.verdict.tolerance")
    require_slices(ladder.pinned, slices, setting="shadow.ladder.pinned")
    return Rules(
        own_slices=own,
        slices=slices,
        tolerance=ToleranceRules(
            factor=said.factor,
            floor=said.floor,
            ceiling=said.ceiling,
            by_hand=said.tolerance,
            baseline_requests=said.baseline_requests,
        ),
        monitor=MonitorRules(
            budget=FalseAlarmBudget(said.requests_per_false_alarm),
            stale_after_s=said.stale_after_s,
            stale_after_requests=said.stale_after_requests,
        ),
        ladder=LadderRules(
            pinned=frozenset(ladder.pinned),
            route_slices=ladder.route_slices,
            cool_down_s=ladder.cool_down_s,
            return_after_s=ladder.return_after_s,
            return_after_requests=ladder.return_after_requests,
            max_returns=ladder.max_returns,
            canary_share=ladder.canary_share,
            canary_requests=ladder.canary_requests,
            canary_patience_s=ladder.canary_patience_s,
            dry_run=ladder.mode == "dry-run",
            is_off=ladder.mode == "off",
        ),
    )


def ledger_rules(settings: LedgerSettings) -> LedgerRules:
    """Return how much is kept."""
    return LedgerRules(max_rows=settings.max_requests, max_age_s=settings.max_days * _SECONDS_A_DAY)


def ledger_path(settings: LedgerSettings, port: int) -> Path | None:
    """Return the file of the service at a port; None: nothing is kept."""
    if settings.path == "off":
        return None
    return settings.path or default_ledger_path(port)
