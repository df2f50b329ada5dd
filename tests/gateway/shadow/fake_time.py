"""An event loop whose time passes only while it has nothing to do, or when it is told."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Selector(selectors.DefaultSelector):
    """Lets the time that a loop would wait pass at once."""

    waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready now."""
        self.waited += timeout or 0.0
        return super().select(0)


class FakeTime(asyncio.SelectorEventLoop):
    """Waits for nobody but its own timers, which are due at once, one after another."""

    def __init__(self) -> None:
        self._waiting = _Selector()
        self._worked = 0.0
        super().__init__(self._waiting)

    def time(self) -> float:
        """Return the seconds since it was made."""
        return self._waiting.waited + self._worked

    def work(self, seconds: float) -> None:
        """Let time pass in which the loop does nothing else."""
        self._worked += seconds

    def run(self, main: Coroutine[Any, Any, _T]) -> _T:
        """Return what ``main`` gives, and end the loop with all its tasks."""
        with asyncio.Runner(loop_factory=lambda: self) as runner:
            return runner.run(main)
