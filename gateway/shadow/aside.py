"""A border around what looks at requests: a defect behind it costs no request."""

import logging
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Aside:
    """Lets work fail without its caller; each place tells of each kind of failure once."""

    def __init__(self) -> None:
        self._told: set[tuple[str, type[Exception]]] = set()

    def within(self, place: str, work: Callable[[], _T], otherwise: _T) -> _T:
        """Return what ``work`` gives, or ``otherwise`` if it fails."""
        try:
            return work()
        except Exception as error:
            # Beside a client's request: its answer does not depend on who looks at it.
            kind = (place, type(error))
            if kind not in self._told:
                self._told.add(kind)
                logger.exception("%s failed beside a request; told once", place)
            return otherwise
