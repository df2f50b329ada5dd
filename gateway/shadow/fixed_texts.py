"""Fixed texts, read by every engine once it is ready: its weights must predict what its build kept.

It costs no scored request. What a sound engine rounds on the way is known from the build, so what
comes on top of it is damage: of weights in memory, of a kernel, of this machine.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compression.errors import ArtifactError
from compression.fixed_texts import (
    FixedText,
    FixedTexts,
    FixedTextsRecord,
    Reading,
    distance,
    limits_of,
    mean_distances,
    read_fixed_texts,
)
from compression.recipe import FULL
from gateway.errors import ApiError
from gateway.pool.lease import ReadyEngine
from gateway.prepared import Prepared
from gateway.registry import Metrics
from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.fixed_texts_finding import Finding, Outcome, judged, worst
from gateway.shadow.leisure import leisure
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

_GAUGES = (
    "fixed_texts_check",
    "fixed_texts_due_timestamp_seconds",
    "fixed_text_distance_nats",
    "fixed_text_limit_nats",
)
_POSITIONS = 32
_LOOK_EVERY_S = 1.0
_RETRY_S, _LONGEST_RETRY_S = 60.0, 3600.0
"""After the first reading that failed, and at most: the pause doubles."""
_TIMEOUT_S = 600.0


class _Unfit(Exception):
    """The check does not apply; says how and why."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


@dataclass(slots=True)
class _Engine:
    """What is known of one engine; a restarted one is another."""

    client: EngineClient
    names: tuple[str, str]
    found: Finding
    due: float
    """When it is tried next, by the monotonic clock."""
    due_time: float
    """The same in seconds since the epoch; what comes first counts: one stands still in a machine
    that sleeps, the other may be set back."""
    wanted: float | None
    """Since when, or from when on, it should be read, in seconds since the epoch; None: never."""
    num_failed: int = 0
    """Readings in a row that came to nothing."""

    @property
    def is_due(self) -> bool:
        """Return whether it is to be tried now."""
        return time.monotonic() >= self.due or time.time() >= self.due_time


class FixedTextsCheck:
    """Reads each engine that became ready, and again every ``every_s`` seconds.

    With 0 it is not read again after a reading that succeeded; one that failed is always repeated.
    ``tell`` is given the finding of each variant at every look; None, once: it has no engine any
    more.
    """

    def __init__(
        self,
        metrics: Metrics,
        engines: Callable[[], Iterable[ReadyEngine]],
        prepared: Callable[[str, str], Prepared | None],
        *,
        publish: Callable[[str, dict[str, Any]], None],
        tell: Callable[[str, str, Finding | None], None],
        every_s: float,
    ) -> None:
        self._metrics = metrics
        self._engines = engines
        self._prepared = prepared
        self._publish = publish
        self._tell = tell
        self._every_s = every_s
        self._known: dict[str, _Engine] = {}

    def finding(self, model: str, variant: str) -> Finding | None:
        """Return what was found of the worst engine of a variant; None: none was looked at."""
        found = [each.found for each in self._known.values() if each.names == (model, variant)]
        return worst(found)

    async def run(self) -> None:
        """Look every second for engines to be read, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Forget engines that went, and read those whose turn it is, one after another."""
        ready = {each.name: each for each in self._engines() if each.spec.variant != FULL}
        gone = [
            name
            for name, known in self._known.items()
            if name not in ready or ready[name].client is not known.client
        ]
        left = {self._known.pop(name).names for name in gone}
        # Before any reading, which may take minutes: nobody is to answer for an engine that went.
        for names in left:
            self._show(names)
            self._tell(*names, self.finding(*names))
        for name, engine in ready.items():
            known = self._known.get(name)
            if known is None or known.is_due:
                await self._check(engine)
        for names in {each.names for each in self._known.values()}:
            self._tell(*names, self.finding(*names))

    async def _check(self, engine: ReadyEngine) -> None:
        names, began = (engine.spec.alias, engine.spec.variant), time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = await self._read(engine)
        except _Unfit as error:
            found = Finding(error.outcome, str(error), time.time())
        except (ApiError, ArtifactError, OSError, TimeoutError) as error:
            reason = str(error) or f"no answer within {_TIMEOUT_S:g} s"
            found = Finding(Outcome.UNREAD, reason, time.time())
        except Exception as error:
            # The border of one engine: a defect must not have it read every second, or stop others.
            logger.exception("%s: fixed texts could not be read", engine.name)
            found = Finding(Outcome.UNREAD, f"a defect: {type(error).__name__}", time.time())
        before = self._known.get(engine.name)
        num_failed, retry_s = 0, self._every_s
        if found.outcome is Outcome.UNREAD:
            num_failed = 1 + (0 if before is None else before.num_failed)
            retry_s = min(_LONGEST_RETRY_S, _RETRY_S * 2.0 ** min(num_failed - 1, 30))
        pause_s = retry_s or float("inf")
        due, due_time = time.monotonic() + pause_s, time.time() + pause_s
        wanted = self._wanted(engine, found, before)
        if before is not None and num_failed and before.found.outcome is Outcome.CHANGED:
            # What a reading has shown stands until another one shows otherwise.
            logger.info("%s: fixed texts: not read again (%s)", engine.name, found.reason)
            before.due, before.due_time, before.num_failed = due, due_time, num_failed
            return
        self._known[engine.name] = _Engine(
            engine.client, names, found, due, due_time, wanted, num_failed
        )
        is_news = before is None or before.found.outcome is not found.outcome
        self._report(engine, found, time.monotonic() - began, is_news=is_news)
        self._show(names)

    def _wanted(self, engine: ReadyEngine, found: Finding, before: _Engine | None) -> float | None:
        """Return since when, or from when on, an engine should be read.

        None: it need not be, or is not tried again.
        """
        match found.outcome:
            case Outcome.OK | Outcome.CHANGED:
                return found.time + self._every_s if self._every_s else None
            case Outcome.NOT_KEPT | Outcome.TOO_LONG:
                return None
            case Outcome.OTHER_NUMERICS if not self._every_s or not _is_embedded(engine):
                return None
        return found.time if before is None or before.wanted is None else before.wanted

    async def _read(self, engine: ReadyEngine) -> Finding:
        record, reading, directory = self._kept(engine)
        texts = await asyncio.to_thread(read_fixed_texts, directory)
        _require_room(engine, texts)
        began = time.monotonic()
        distances = mean_distances(await self._distances(engine.client, texts))
        seconds = time.monotonic() - began
        limits = limits_of(reading)
        if limits.keys() != distances.keys():
            raise _Unfit(Outcome.UNREAD, "the texts are not those that were read at the build")
        found = Finding(
            Outcome.OK,
            "as at the build",
            time.time(),
            distances=distances,
            usual=reading.distances,
            limits=limits,
            tokens=record.tokens,
            seconds=seconds,
        )
        return judged(found)

    def _kept(self, engine: ReadyEngine) -> tuple[FixedTextsRecord, Reading, Path]:
        """Return what the build kept for an engine like this one."""
        prepared = self._prepared(engine.spec.alias, engine.spec.variant)
        kept = ((prepared.manifest if prepared else None) or {}).get("fixed_texts")
        if prepared is None or prepared.directory is None or kept is None:
            raise _Unfit(Outcome.NOT_KEPT, "the build kept no texts, or the artifact is not here")
        try:
            record = FixedTextsRecord.model_validate(kept)
        except ValidationError:
            raise _Unfit(
                Outcome.UNREAD, "the manifest's 'fixed_texts' is of no known form"
            ) from None
        if record.reading is None and _is_embedded(engine):
            raise _Unfit(Outcome.UNREAD, "nothing to hold it against: see the log of its load")
        if record.reading is None:
            raise _Unfit(Outcome.NOT_KEPT, "no engine read the texts at the build")
        info = engine.info
        told = None if info is None else (info.program, info.reads_with)
        if told != (record.reading.version, record.reading.numerics):
            raise _Unfit(
                Outcome.OTHER_NUMERICS,
                f"version and numerics of the engine are {told}, and of the one whose reading is "
                f"kept were {(record.reading.version, record.reading.numerics)}",
            )
        return record, record.reading, prepared.directory

    async def _distances(self, client: EngineClient, texts: FixedTexts) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for text in texts.texts:
            found.setdefault(text.name, []).extend(await _distances(client, text))
        return found

    # -- what is told -----------------------------------------------------------------------

    def _report(
        self, engine: ReadyEngine, found: Finding, seconds: float, *, is_news: bool
    ) -> None:
        is_bad = found.outcome is Outcome.CHANGED
        level = logging.WARNING if is_bad else logging.INFO if is_news else logging.DEBUG
        logger.log(
            level,
            "%s: fixed texts: %s (%s; %.1f s)",
            engine.name,
            found.outcome,
            found.reason,
            seconds,
        )
        if is_news or is_bad:
            fields = {"model": engine.spec.alias, "variant": engine.spec.variant}
            self._publish("fixed_texts", {**fields, "engine": engine.name, **asdict(found)})

    def _show(self, names: tuple[str, str]) -> None:
        """Bring metrics up to what is known of a variant."""
        gauges, found = self._metrics.gauges, self.finding(*names)
        for name in _GAUGES:
            gauges[name].remove_by_labels({"model": names[0], "variant": names[1]})
        wanted = [
            each.wanted
            for each in self._known.values()
            if each.names == names and each.wanted is not None
        ]
        if wanted:
            gauges["fixed_texts_due_timestamp_seconds"].labels(*names).set(min(wanted))
        if found is not None:
            for outcome in Outcome:
                value = int(outcome is found.outcome)
                gauges["fixed_texts_check"].labels(*names, outcome.value).set(value)
            for text, nats in found.distances.items():
                gauges["fixed_text_distance_nats"].labels(*names, text).set(nats)
                gauges["fixed_text_limit_nats"].labels(*names, text).set(found.limits[text])


def _is_embedded(engine: ReadyEngine) -> bool:
    """Return whether an engine is of the kind that reads the texts behind builds."""
    return engine.info is not None and engine.info.reads_with is not None


def _require_room(engine: ReadyEngine, texts: FixedTexts) -> None:
    room = None if engine.info is None else engine.info.max_model_len
    read = max(len(text.token_ids) for text in texts.texts) - 1  # the last one is predicted
    if room is not None and read > room:
        raise _Unfit(
            Outcome.TOO_LONG, f"a text has {read} tokens to be read, and the context holds {room}"
        )


async def _distances(client: EngineClient, text: FixedText) -> list[float]:
    """Return the distance of each predicted token of a text, nats."""
    told = await EmbeddedScorer(client).score(text.token_ids, text.first, text.top_ids)
    found: list[float] = []
    rows = list(zip(text.top_ids, text.logprobs, told, strict=True))
    for start in range(0, len(rows), _POSITIONS):
        await leisure()
        for ids, kept, position in rows[start : start + _POSITIONS]:
            found.append(distance(kept, [position.logprobs[each] for each in ids]))
    return found
