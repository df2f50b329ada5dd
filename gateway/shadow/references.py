"""The references of all models: within their share of memory, ended when nobody needs them."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from gateway.errors import NarrowgateError
from gateway.launch import Launch
from gateway.model_settings import ModelSettings
from gateway.registry import Metrics
from gateway.shadow.reference import STOP_GRACE_S, Reference
from gateway.shadow.reference_memory import NoRoom, ReferenceMemory
from gateway.shadow.reference_spec import reference_spec
from gateway.shadow.scorers import MakeScorer, make_scorer
from gateway.shadow.upkeep import again_and_again
from gateway.shadow_settings import ReferenceSettings

logger = logging.getLogger(__name__)

_TEND_EVERY_S = 0.5
_ROOM_WAIT_S = 60.0
"""How long one that is to be asked waits until another one is asked no more."""


class References:
    """One reference a model; ``is_wanted`` says which models are scored now."""

    def __init__(
        self,
        models: Mapping[str, ModelSettings],
        settings: ReferenceSettings,
        launch: Launch,
        *,
        metrics: Metrics,
        is_wanted: Callable[[str], bool],
        make_scorer: MakeScorer = make_scorer,
        room_wait_s: float = _ROOM_WAIT_S,
    ) -> None:
        self._settings = settings
        self._memory = ReferenceMemory(
            settings.memory, lambda: self._references.values(), wait_s=room_wait_s
        )
        self._is_wanted = is_wanted
        self._references = {
            alias: Reference(
                reference_spec(alias, model, settings),
                launch,
                metrics=metrics,
                make_room=self._memory.take,
                make_scorer=make_scorer,
            )
            for alias, model in models.items()
        }

    def of(self, model: str) -> Reference:
        """Return the reference of a model."""
        return self._references[model]

    async def tend(self) -> None:
        """Start those that are to be resident and end those that are idle, for ever."""
        tending = (partial(self._tend, *each) for each in self._references.items())
        await asyncio.gather(*(again_and_again(work) for work in tending))

    async def stop(self) -> None:
        """End all of them at once."""
        await asyncio.gather(*(each.stop(0) for each in self._references.values()))

    def status(self, model: str) -> dict[str, Any]:
        """Return the state of a model's reference as plain data."""
        reference = self._references[model]
        return {
            "state": reference.state,
            "url": reference.url,
            "memory_bytes": reference.num_bytes,
            "pause_s": round(reference.pause_left_s, 1),
            "last_error": reference.last_error,
        }

    async def _tend(self, alias: str, reference: Reference) -> None:
        """Tend one, so that none waits while another one starts."""
        while True:
            await asyncio.sleep(_TEND_EVERY_S)
            if reference.is_running:
                await self._tend_running(alias, reference)
            elif self._is_resident(alias) and not reference.pause_left_s:
                await self._start_resident(alias, reference)

    async def _start_resident(self, alias: str, reference: Reference) -> None:
        # Two that are to be resident and have room for one must not end each other by turns.
        if not self._memory.has(reference.needed_bytes or 0):
            return
        try:
            await reference.scorer(may_evict=False)
        except NoRoom as error:
            logger.warning("no reference for %s until it is asked for: %s", alias, error)
        except NarrowgateError as error:
            logger.warning("no reference for %s: %s", alias, error)

    def _is_resident(self, alias: str) -> bool:
        return self._settings.mode == "resident" and self._is_wanted(alias)

    async def _tend_running(self, alias: str, reference: Reference) -> None:
        reference.count_cpu()
        idle_s = time.monotonic() - reference.last_used
        is_idle = idle_s > self._settings.idle_s and not reference.num_users
        if is_idle and not self._is_resident(alias):
            logger.info("the reference of %s is stopped (idle)", alias)
            with suppress(TimeoutError):  # it was asked at this moment
                await reference.make_way(0, STOP_GRACE_S)
