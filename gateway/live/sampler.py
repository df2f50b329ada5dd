"""The last minutes of the service: readings every few seconds, in rings of fixed length."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from gateway.live.rates import Rates, Totals, added, rates
from gateway.live.reading import BOUNDS, Reading, read
from gateway.registry import Metrics

EVERY_S = 5.0
KEPT_S = 900.0
"""What the series go back."""
WINDOWS_S = (10.0, 60.0, 300.0)

Key = tuple[str, ...]
"""Whose numbers: ``()`` the whole process, ``(model,)``, or ``(model, variant)``."""


@dataclass(frozen=True, slots=True)
class Step:
    """What happened from one reading to the next; ``time`` is its end, since the epoch."""

    time: float
    rates: Mapping[Key, Rates]
    running: Mapping[Key, float]


class Live:
    """Reads the counters now and then, and tells rates over windows and over time."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._wall = wall
        self._started = clock()
        num_readings = int(max(WINDOWS_S) / EVERY_S) + 2
        self._readings: deque[tuple[float, Mapping[Key, Totals]]] = deque(maxlen=num_readings)
        self._steps: deque[Step] = deque(maxlen=int(KEPT_S / EVERY_S))
        self._readings.append((self._started, {}))

    @property
    def uptime_s(self) -> float:
        """Return for how long the service has been there."""
        return self._clock() - self._started

    async def run(self) -> None:
        """Read, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            self.sample()

    def sample(self) -> None:
        """Read once."""
        now, reading = self._clock(), read(self._metrics)
        then, before = self._readings[-1]
        after = _grouped(reading)
        found = _between(before, after, now - then, after.keys())
        self._readings.append((now, after))
        self._steps.append(Step(self._wall(), found, _running(reading)))

    def windows(self, keys: Iterable[Key]) -> dict[Key, dict[float, Rates]]:
        """Return what happened within each of the windows until now.

        A window begins at the last reading before it, so it is up to a step longer than its name.
        """
        now, after = self._clock(), _grouped(read(self._metrics))
        found: dict[Key, dict[float, Rates]] = {key: {} for key in keys}
        for window_s in WINDOWS_S:
            then, before = self._since(now - window_s)
            for key, each in _between(before, after, now - then, found).items():
                found[key][window_s] = each
        return found

    def now(self) -> tuple[dict[Key, float], dict[str, float]]:
        """Return the requests at engines, and by model those that wait for their turn."""
        reading = read(self._metrics)
        return _running(reading), dict(reading.waiting)

    def steps(self) -> tuple[Step, ...]:
        """Return the series, the oldest step first."""
        return tuple(self._steps)

    def _since(self, moment: float) -> tuple[float, Mapping[Key, Totals]]:
        older = [each for each in self._readings if each[0] <= moment]
        return older[-1] if older else self._readings[0]


def _between(
    before: Mapping[Key, Totals], after: Mapping[Key, Totals], seconds: float, keys: Iterable[Key]
) -> dict[Key, Rates]:
    nothing = Totals()
    return {
        key: rates(before.get(key, nothing), after.get(key, nothing), seconds, BOUNDS)
        for key in keys
    }


def _grouped(reading: Reading) -> dict[Key, Totals]:
    """Return the counts of variants, of models and of the whole."""
    found: dict[Key, Totals] = dict(reading.totals.items())
    for model in {name[0] for name in reading.totals}:
        found[(model,)] = added(each for name, each in reading.totals.items() if name[0] == model)
    return {**found, (): added(reading.totals.values())}


def _running(reading: Reading) -> dict[Key, float]:
    found: dict[Key, float] = {(): 0.0}
    for name, value in reading.running.items():
        for key in chain([name], [(name[0],)], [()]):
            found[key] = found.get(key, 0.0) + value
    return found
