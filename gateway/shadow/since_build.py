"""What a changed engine means to verdicts: its slices drift, whatever traffic shows of them."""

from collections.abc import Mapping
from dataclasses import replace

from compression.fixed_texts import ALL as ALL_TEXTS
from gateway.shadow.fixed_texts_finding import Finding
from gateway.shadow.slices import ALL
from gateway.shadow.tolerance import MEASURED
from gateway.shadow.verdict import SinceBuild, State, Verdict


def changes_of(found: Finding | None) -> dict[str, SinceBuild]:
    """Return by slice what a finding shows; of texts without a slice of their own, by ``all``.

    Prose in Latin script that changed is the model that did; code that did is its slice.
    """
    changes: dict[str, SinceBuild] = {}
    if found is None:
        return changes
    for text in found.changed:
        name = ALL if text == ALL_TEXTS else MEASURED.get(text, ALL)
        evidence = SinceBuild(text, found.distances[text], found.limits[text])
        changes.setdefault(name, evidence)
    return changes


def overlaid(
    verdicts: Mapping[str, Verdict],
    changes: Mapping[str, SinceBuild],
    now: float,
    before: Mapping[str, Verdict],
) -> Mapping[str, Verdict]:
    """Return verdicts, of which the changed slices are in drift, shown ``now``.

    ``before`` is what was told last: what drifted already does so since then.
    """
    if not changes:
        return verdicts
    return {
        name: verdict
        if name not in changes
        else replace(
            verdict,
            state=State.DRIFT,
            confirmed=now,
            since_build=changes[name],
            since=before[name].since if _drifts(before.get(name)) else now,
        )
        for name, verdict in verdicts.items()
    }


def _drifts(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.state is State.DRIFT
