"""One token on fixed prompts, again and again: an engine must go on saying what it said at first.

A change without a change of the engine means that its weights, its kernels or its machine went
wrong, and it shows without any traffic.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from gateway.errors import ApiError
from gateway.pool.lease import ReadyEngine
from gateway.registry import Metrics
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

PROMPTS = (
    "The capital of France is",
    "def add(left, right):\n    return left +",
    "Monday, Tuesday, Wednesday,",
    "Im Frühling werden die Tage",
)
NUM_TOP = 5
_REQUEST_ID = "probe"
_TIMEOUT_S = 10.0

Distribution = Mapping[str, float]
"""The likeliest first tokens, by their text, with their log-probabilities."""


class Probe:
    """Compares what engines say now with what they said when they became ready."""

    def __init__(self, metrics: Metrics, engines: Callable[[], Iterable[ReadyEngine]]) -> None:
        self._metrics = metrics
        self._engines = engines
        self._first: dict[str, tuple[EngineClient, Sequence[Distribution]]] = {}
        self._met: dict[str, EngineClient] = {}

    async def run(self) -> None:
        """Ask every engine once and tell how much it changed."""
        changes: dict[tuple[str, str], float] = {}
        for engine in self._engines():
            found = await self._ask_all(engine)
            known = self._known(engine)
            if found is None or known is None:
                continue
            names = (engine.spec.alias, engine.spec.variant)
            change = max(map(largest_change, known, found))
            changes[names] = max(changes.get(names, 0.0), change)
        for names, change in changes.items():
            self._metrics.gauges["probe_change_nats"].labels(*names).set(change)

    async def meet(self) -> None:
        """Ask the engines that have become ready since the last call."""
        for engine in self._engines():
            if self._met.get(engine.name) is not engine.client:
                await self._ask_all(engine)

    def _known(self, engine: ReadyEngine) -> Sequence[Distribution] | None:
        """Return what an engine said at first; a restarted engine is another one."""
        client, found = self._first.get(engine.name, (None, ()))
        return found if client is engine.client else None

    async def _ask_all(self, engine: ReadyEngine) -> Sequence[Distribution] | None:
        probes = self._metrics.counters["probes_total"]
        names = (engine.spec.alias, engine.spec.variant)
        self._met[engine.name] = engine.client
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = [await ask(engine.client, prompt) for prompt in PROMPTS]
        except (ApiError, TimeoutError, LookupError, TypeError, ValueError) as error:
            logger.info("%s could not be probed: %s", engine.name, type(error).__name__)
            probes.labels(*names, "failed").inc()
            return None
        probes.labels(*names, "ok").inc()
        if self._known(engine) is None:
            self._first[engine.name] = (engine.client, found)
        return found


async def ask(client: EngineClient, prompt: str) -> Distribution:
    """Return what an engine finds likely behind a prompt.

    Raises:
        ApiError: the engine failed at it.
        LookupError, TypeError, ValueError: it does not tell.
    """
    fields = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": NUM_TOP}
    reply = await client.complete(fields, _REQUEST_ID)
    told = reply["choices"][0]["logprobs"]["top_logprobs"][0]
    return {str(token): float(logprob) for token, logprob in told.items()}


def largest_change(before: Distribution, now: Distribution) -> float:
    """Return the largest change of a log-probability, in nats.

    A token that left the likeliest ones is at most as likely as the least of them.
    """
    if not before or not now or not all(map(math.isfinite, [*before.values(), *now.values()])):
        return math.inf if before.keys() != now.keys() or dict(before) != dict(now) else 0.0
    least_before, least_now = min(before.values()), min(now.values())
    changes = [abs(now[token] - before[token]) for token in before.keys() & now.keys()]
    changes += [before[token] - least_now for token in before.keys() - now.keys()]
    changes += [now[token] - least_before for token in now.keys() - before.keys()]
    return max(0.0, *changes)
