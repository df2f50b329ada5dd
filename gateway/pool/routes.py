"""Slices of a model's requests that another variant answers than the active one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gateway.pool.share import Draw
from gateway.pool.state import State
from gateway.pool.variant import Variant

_GONE = frozenset({State.STOPPED, State.STOPPING, State.FAILED})


@dataclass(frozen=True, slots=True)
class _Route:
    variant: Variant
    share: float


class Routes:
    """Says where requests of some slices go, by the slices' names; most of them, not all.

    A request that stays for the sake of one slice stays for all of them: slices overlap, and what
    several of them drew apart would hardly leave any request where it was.
    """

    def __init__(self, ladder: Sequence[Variant]) -> None:
        self._ladder = ladder
        self._draw = Draw()
        self._routes: dict[str, _Route] = {}

    def __bool__(self) -> bool:
        return bool(self._routes)

    def lead(self, names: Collection[str], to: Variant, share: float) -> None:
        """Send a share of the requests in each of these slices to a variant."""
        self._routes |= dict.fromkeys(names, _Route(to, share))

    def end(self, names: Collection[str]) -> None:
        """Let these slices go where all others go."""
        for name in names:
            self._routes.pop(name, None)

    def clear(self) -> None:
        """Let all slices go there."""
        self._routes.clear()

    def takes(self, request_id: str, slices: Collection[str]) -> Variant | None:
        """Return the safest variant that one of a request's slices leads to; None: it stays.

        A variant that cannot serve now takes nothing.
        """
        place = self._draw.place(request_id) if self._routes and slices else 1.0
        found = [
            route.variant
            for name in slices
            if (route := self._routes.get(name)) is not None
            and place < route.share
            and route.variant.state is State.READY
        ]
        return max(found, key=self._ladder.index, default=None)

    @property
    def variants(self) -> set[Variant]:
        """Return who answers them."""
        return {each.variant for each in self._routes.values()}

    def shape(self) -> Mapping[str, str]:
        """Return the names of variants by slice, of those that are there or come back."""
        return {
            name: each.variant.spec.variant
            for name, each in self._routes.items()
            if each.variant.state not in _GONE
        }
