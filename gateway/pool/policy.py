"""Pure decisions over all variants: who must make room, who has been idle for too long."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resident:
    """A variant that is in memory."""

    name: str
    num_bytes: int
    is_in_use: bool
    is_pinned: bool
    last_used: float
    keep_alive_s: float | None


def evictions(residents: Sequence[Resident], *, need: int, budget: int) -> list[str] | None:
    """Return who must stop so that ``need`` bytes fit, longest unused first; None: it cannot be.

    Nobody is named without need: who turns out not to be needed for the room stays.
    """
    excess = sum(each.num_bytes for each in residents) + need - budget
    if excess <= 0:
        return []
    idle = [each for each in residents if not each.is_in_use and not each.is_pinned]
    chosen: list[Resident] = []
    for each in sorted(idle, key=lambda each: each.last_used):
        if excess <= 0:
            break
        chosen.append(each)
        excess -= each.num_bytes
    if excess > 0:
        return None
    for each in sorted(chosen, key=lambda each: -each.last_used):
        if excess + each.num_bytes <= 0:
            chosen.remove(each)
            excess += each.num_bytes
    return [each.name for each in chosen]


def idle_too_long(residents: Sequence[Resident], now: float) -> list[str]:
    """Return whose keep-alive time is over."""
    return [
        each.name
        for each in residents
        if each.keep_alive_s is not None
        and not each.is_in_use
        and not each.is_pinned
        and now - each.last_used >= each.keep_alive_s
    ]
