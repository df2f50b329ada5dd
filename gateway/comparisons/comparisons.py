"""Comparisons on demand: one at a time, in a process of its own that stands back for requests."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any, Protocol

from compression.events import OnProgress, Progress
from compression.recipe import FULL
from gateway.comparisons.command import CompareCommand
from gateway.comparisons.comparison import Comparison, State
from gateway.comparisons.room import least_bytes, room
from gateway.errors import ComparisonRunning, Draining, NarrowgateError, RouteNotFound
from gateway.job import run_job
from gateway.launch import Launch
from gateway.model_settings import VariantSettings
from gateway.pool.pool import Pool
from gateway.prepared import Prepared
from gateway.specs import VariantSpec
from gateway.wire import MAX_ECHO

logger = logging.getLogger(__name__)

KEPT = 8
"""Comparisons that are remembered, with their reports; none outlives the service."""

NICENESS = 19
_TELL_EVERY_S = 5.0


class Run(Protocol):
    """Runs a child process; :func:`gateway.job.run_job` is the real one."""

    def __call__(
        self, arguments: list[str], on_progress: OnProgress, *, niceness: int
    ) -> Awaitable[dict[str, Any]]:
        """Return the child's last event."""


class Comparisons:
    """Starts, watches, remembers and ends comparisons."""

    def __init__(
        self,
        launch: Launch,
        pool: Pool,
        *,
        run: Run = run_job,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launch = launch
        self._pool = pool
        self._run = run
        self._clock = clock
        self._kept: dict[str, Comparison] = {}
        self._running: tuple[Comparison, asyncio.Task[None]] | None = None

    def start(self, model: str, command: CompareCommand) -> Comparison:
        """Begin a comparison and return it.

        Raises:
            ComparisonRunning: there is one at a time.
            NoMemory: the memory budget has less room than any comparison takes.
            Draining: the gateway is about to end.
        """
        if self._pool.is_draining:
            raise Draining("the gateway is stopping and begins no comparison")
        if self._running is not None:
            other = self._running[0]
            raise ComparisonRunning(
                f"{other.name} is running: wait for it, or end it with "
                f"DELETE /admin/compare/{other.id}"
            )
        comparison = Comparison(f"cmp-{secrets.token_hex(8)}", model, command)
        with self._pool.hold(least_bytes(self._full_bytes(model)), comparison.name):
            pass  # what is refused for its size is refused at once, as far as that is known
        self._kept[comparison.id] = comparison
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        task = asyncio.create_task(self._compare(comparison))
        self._running = comparison, task
        return comparison

    def all(self) -> list[Comparison]:
        """Return those that are remembered, the latest first."""
        return list(reversed(self._kept.values()))

    def find(self, comparison_id: str) -> Comparison:
        """Return the one with that id.

        Raises:
            RouteNotFound: there is none, or it is forgotten.
        """
        found = self._kept.get(comparison_id)
        if found is None:
            raise RouteNotFound(
                f"no comparison {comparison_id[:MAX_ECHO]!r}: the last {KEPT} are remembered, see "
                "GET /admin/compare"
            )
        return found

    async def end(self, comparison_id: str) -> Comparison:
        """End a comparison and its process, or forget one that has ended.

        Raises:
            RouteNotFound: there is none with that id.
        """
        found = self.find(comparison_id)
        if self._running is not None and self._running[0] is found:
            await self.close()
        else:
            del self._kept[comparison_id]
        return found

    async def close(self) -> None:
        """End what runs; safe to repeat."""
        if self._running is not None:
            comparison, task = self._running
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if comparison.state is State.RUNNING:  # the task had not begun
                comparison.finish(State.ENDED)
                self._running = None

    async def _compare(self, comparison: Comparison) -> None:
        logger.info("%s begins", comparison.name)
        self._tell(comparison)
        try:
            with ExitStack() as held:
                on_progress = self._listener(comparison)
                command = await self._within_budget(comparison, held, on_progress)
                ended = await self._run(command.words(), on_progress, niceness=NICENESS)
            comparison.report = ended["report"]
            comparison.finish(State.DONE)
        except asyncio.CancelledError:
            comparison.finish(State.ENDED)
            raise
        except NarrowgateError as error:
            comparison.error = str(error)
            comparison.finish(State.FAILED)
        except Exception:
            # The border of this task: a defect must not look like a comparison that goes on.
            logger.exception("%s failed", comparison.name)
            comparison.error = "internal error: see the server's log"
            comparison.finish(State.FAILED)
        finally:
            self._running = None
            self._tell(comparison)

    async def _within_budget(
        self, comparison: Comparison, held: ExitStack, on_progress: OnProgress
    ) -> CompareCommand:
        """Set memory aside and return the command that keeps to it.

        Everything is made first: only then its size is known. The child finds it in the store.
        """
        command = comparison.command
        if self._pool.unused_bytes() is None:
            return command
        full, *recipes = [
            await self._prepare(comparison, recipe, on_progress)
            for recipe in (FULL, *command.recipe)
        ]
        needed = room(full, recipes, self._pool.unused_bytes() or 0)
        held.enter_context(self._pool.hold(needed.total, comparison.name))
        comparison.memory_bytes = needed.total
        return replace(command, memory=max(1, needed.recipes))

    async def _prepare(
        self, comparison: Comparison, recipe: str, on_progress: OnProgress
    ) -> Prepared:
        command = comparison.command
        settings = VariantSettings(model=command.model, revision=command.revision, recipe=recipe)
        spec = VariantSpec(comparison.model, "comparison", settings, niceness=NICENESS)
        return await self._launch.prepare(spec, on_progress)

    def _full_bytes(self, model: str) -> int:
        """Return the size of the full model, as far as a loaded variant tells it."""
        manifests = [
            shot.prepared.manifest
            for shot in self._pool.snapshots()
            if shot.spec.alias == model and shot.prepared and shot.prepared.manifest
        ]
        return max((int(each.get("bytes_before", 0)) for each in manifests), default=0)

    def _listener(self, comparison: Comparison) -> OnProgress:
        told_at = -float("inf")

        def listen(progress: Progress) -> None:
            nonlocal told_at
            comparison.progress = progress
            now = self._clock()
            # The log of events is everybody's, and it is short.
            if now - told_at < _TELL_EVERY_S:
                return
            told_at = now
            fields = {"id": comparison.id, "model": comparison.model, **asdict(progress)}
            self._pool.events.publish("comparison_progress", fields)

        return listen

    def _tell(self, comparison: Comparison) -> None:
        logger.info("%s is %s", comparison.name, comparison.state.value)
        fields = {"id": comparison.id, "model": comparison.model, "state": comparison.state.value}
        if comparison.error is not None:
            fields["error"] = comparison.error
        self._pool.events.publish("comparison", fields)
