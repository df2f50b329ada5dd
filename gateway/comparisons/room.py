"""What a comparison holds in memory: the full model beside as many recipes as there is room for."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.backends.embedded import OVERHEAD_BYTES
from gateway.prepared import Prepared

WORK_BYTES = 1024 * 1024 * 1024
"""Logits of a block of positions and what is computed of them, beside what an engine holds.

At 49,152 words of vocabulary 770 MB were held beside the weights, all together.
"""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes to set aside, and how many of them are for the weights of recipes."""

    total: int
    recipes: int


def least_bytes(full_bytes: int) -> int:
    """Return what no comparison does without; ``full_bytes`` 0: the model's size is not known."""
    return OVERHEAD_BYTES + WORK_BYTES + full_bytes


def room(full: Prepared, recipes: Sequence[Prepared], unused_bytes: int) -> Room:
    """Return the room for all recipes together; if that is not there, for them in turns."""
    base = least_bytes(full.weights_bytes)
    sizes = [each.weights_bytes for each in recipes]
    together, one = sum(sizes), max(sizes)
    held = together if base + together <= unused_bytes else one
    return Room(base + held, held)
