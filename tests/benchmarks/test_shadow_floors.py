"""A small damage is seen under a low tolerance alone; sound requests raise no alarm under any."""

import random
from collections.abc import Iterator
from itertools import islice

from benchmarks.shadow.floors import caught, drawn, events
from benchmarks.shadow.real_pair import Kept
from compression.fidelity_record import SliceFidelity
from gateway.shadow.monitor import Monitor
from gateway.shadow.slices import ALL, all_slices
from gateway.shadow.tolerance import ToleranceRules, Tolerances
from gateway.shadow.verdict import State

MEASURED = SliceFidelity(
    name="english",
    kld_mean=0.0023,
    kld_mean_ci95=(0.002, 0.0026),
    kld_p99=0.01,
    top1=0.98,
    top1_ci95=(0.97, 0.99),
    tokens=500,
)


def scored(mean: float) -> Iterator[Kept]:
    """Yield requests whose divergences scatter by half around a mean, in nats a token."""
    choose = random.Random(1)
    while True:
        found = mean * choose.uniform(0.5, 1.5)
        yield Kept(found, 0.1, {ALL: found})


def watching(floor: float) -> Monitor:
    """Return a monitor with this least tolerance."""
    tolerances = Tolerances(ToleranceRules(floor=floor), (MEASURED,))
    return Monitor("test", all_slices(), tolerances)


SOUND, DAMAGED = (list(islice(scored(mean), 300)) for mean in (0.0022, 0.004))


def test_a_small_damage_hides_below_a_high_floor() -> None:
    """What adds less than the tolerance leaves room for is no drift."""
    first, whole = caught(SOUND, DAMAGED, watching(0.003), seed=1)
    assert first is not None
    assert first[1:] == (ALL, State.DRIFT)
    assert whole == first[0]
    assert caught(SOUND, DAMAGED, watching(0.01), seed=1) == (None, None)


def test_sound_requests_become_ok() -> None:
    """One change, whatever the floor: from learning to ok."""
    for floor in (0.003, 0.01):
        (only,) = events(islice(drawn(SOUND, 1), 2000), watching(floor))
        assert only[1:] == (ALL, State.OK)
