"""The references of all models: within their share of memory, ended when nobody needs them."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import NarrowgateError, StartupError
from gateway.launch import Launch
from gateway.model_settings import ModelSettings
from gateway.registry import Metrics
from gateway.shadow.reference import MakeScorer, Reference, make_scorer
from gateway.shadow.reference_spec import reference_spec
from gateway.shadow_settings import ReferenceSettings

logger = logging.getLogger(__name__)

_TEND_EVERY_S = 0.5


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
    ) -> None:
        self._settings = settings
        self._memory = settings.memory
        self._is_wanted = is_wanted
        self._references = {
            alias: Reference(
                reference_spec(alias, model, settings),
                launch,
                metrics=metrics,
                make_room=self._make_room,
                make_scorer=make_scorer,
            )
            for alias, model in models.items()
        }

    def of(self, model: str) -> Reference:
        """Return the reference of a model."""
        return self._references[model]

    async def tend(self) -> None:
        """Start those that are to be resident and end those that are idle, for ever."""
        while True:
            await asyncio.sleep(_TEND_EVERY_S)
            for alias, reference in self._references.items():
                if reference.is_running:
                    await self._tend_running(alias, reference)
                elif self._is_resident(alias) and not reference.pause_left_s:
                    try:
                        await reference.scorer()
                    except NarrowgateError as error:
                        logger.warning("no reference for %s: %s", alias, error)

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

    def _is_resident(self, alias: str) -> bool:
        return self._settings.mode == "resident" and self._is_wanted(alias)

    async def _tend_running(self, alias: str, reference: Reference) -> None:
        reference.count_cpu()
        idle_s = time.monotonic() - reference.last_used
        is_idle = idle_s > self._settings.idle_s and not reference.num_users
        if is_idle and not self._is_resident(alias):
            logger.info("the reference of %s is stopped (idle)", alias)
            await reference.stop()

    async def _make_room(self, claimant: Reference, num_bytes: int) -> None:
        if self._memory is None:
            return
        if num_bytes > self._memory:
            raise StartupError(
                f"the reference of {claimant.spec.alias} needs {num_bytes} bytes, "
                f"'shadow.reference.memory' is {self._memory}: raise it"
            )
        others = [each for each in self._references.values() if each.num_bytes]
        others.sort(key=lambda each: each.last_used)
        used = sum(each.num_bytes for each in others)
        for other in others:
            if used + num_bytes <= self._memory:
                return
            if not other.num_users:
                used -= other.num_bytes
                await other.stop(0)
        if used + num_bytes > self._memory:
            raise StartupError(
                f"the reference of {claimant.spec.alias} needs {num_bytes} bytes, and there is no "
                f"room for it now: those in use hold {used} of {self._memory} bytes, which is "
                "'shadow.reference.memory': wait, or raise it"
            )
