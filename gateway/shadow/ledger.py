"""The ledger: numbers of every scored request, written in batches by a thread of its own."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from gateway.errors import SettingsError
from gateway.shadow.ledger_entry import LedgerEntry, SliceAggregate
from gateway.shadow.ledger_file import LedgerFile, NewerFormat, Window

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class LedgerRules:
    """How much is kept, and how often it is written and cleaned; times are in seconds."""

    max_rows: int = 200_000
    max_age_s: float = 30 * 86_400.0
    batch_s: float = 1.0
    clean_s: float = 60.0
    """How often what is too old or too much is dropped, also while nothing comes in."""
    max_waiting: int = 10_000
    """Entries that wait to be written; what comes beyond is lost."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_age_s", "max_waiting"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name!r} is {getattr(self, name)}: use more than 0")


class Ledger:
    """One file with all scored requests, and what the monitors know; one service owns it.

    Nothing here ever fails a caller: what cannot be written is lost and counted, a damaged file is
    set aside for a new one.

    Raises:
        SettingsError: the file cannot be made, another service has it, or a newer program wrote it.
    """

    def __init__(self, path: Path, rules: LedgerRules | None = None) -> None:
        self.num_lost = 0
        """Entries that could not be written."""
        self._path = path
        self._rules = rules or LedgerRules()
        self._waiting: list[LedgerEntry] = []
        self._news = asyncio.Event()
        self._is_failing = False
        self._file: LedgerFile | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        # The kernel lets go of it, however the process ends.
        self._lock = FileLock(path.with_name(f"{path.name}.lock"), thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            self._file = self._open()
        except Timeout:
            raise SettingsError(
                f"the ledger {str(path)!r} is written by another service: stop that one, or name "
                "another file in 'shadow.ledger.path'"
            ) from None
        except NewerFormat as error:
            self._lock.release()
            raise SettingsError(
                f"the ledger {str(path)!r} cannot be used: {error}; or name another file in "
                "'shadow.ledger.path'"
            ) from None
        except (OSError, sqlite3.Error) as error:
            self._lock.release()
            raise SettingsError(
                f"the ledger {str(path)!r} cannot be written ({error}): name another file"
            ) from None

    def add(self, entry: LedgerEntry) -> None:
        """Keep an entry; it is written soon."""
        if len(self._waiting) >= self._rules.max_waiting:
            self.num_lost += 1
            return
        self._waiting.append(entry)
        self._news.set()

    async def run(self) -> None:
        """Write what comes in, batch by batch, and drop what is too old, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_batches())
            group.create_task(self._clean_now_and_then())

    async def flush(self) -> None:
        """Write what waits."""
        self._news.clear()
        batch, self._waiting = self._waiting, []
        if batch:
            written = await self._in_thread(lambda file: file.write(batch))
            self.num_lost += len(batch) - (written or 0)

    async def aggregates(self, window: Window) -> list[SliceAggregate]:
        """Return the figures of each slice within a window; nothing of a damaged file."""
        await self.flush()
        return await self._in_thread(lambda file: file.aggregates(window)) or []

    async def keep_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep what monitors know, by their names."""
        await self._in_thread(lambda file: file.keep_states(states))

    async def states(self) -> dict[str, Any]:
        """Return what monitors knew; nothing of a damaged file."""
        return await self._in_thread(lambda file: file.states()) or {}

    async def keep_ladder(self, model: str, state: Mapping[str, Any]) -> None:
        """Keep where the ladder of a model stands."""
        await self._in_thread(lambda file: file.keep_ladder(model, state))

    async def ladders(self) -> dict[str, Any]:
        """Return where ladders stood, by model; nothing of a damaged file."""
        return await self._in_thread(lambda file: file.ladders()) or {}

    async def forget_ladders(self, *, but: Collection[str]) -> None:
        """Drop the ladders of all other models."""
        await self._in_thread(lambda file: file.forget_ladders(but=but))

    async def close(self) -> None:
        """Write what waits, and close the file; nothing can be done with it afterwards."""
        await self.flush()
        await self._in_thread(lambda file: file.close())
        self._file = None
        self._thread.shutdown()
        self._lock.release()

    async def _write_batches(self) -> None:
        while True:
            await self._news.wait()
            await asyncio.sleep(self._rules.batch_s)
            await self.flush()

    async def _clean_now_and_then(self) -> None:
        while True:
            await self._in_thread(self._clean)
            await asyncio.sleep(self._rules.clean_s)

    async def _in_thread(self, work: Callable[[LedgerFile], _T]) -> _T | None:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._try, work)

    def _try(self, work: Callable[[LedgerFile], _T]) -> _T | None:
        """Do some work on the file, on a new one if it is damaged; None if that is impossible."""
        for _ in range(2):
            try:
                self._file = self._file or self._open()
                done = work(self._file)
            except (sqlite3.Error, OSError) as error:
                if not _is_damage(error):
                    self._tell(error)
                    return None
                self._set_aside(error)
            else:
                self._is_failing = False
                return done
        return None

    def _clean(self, file: LedgerFile) -> None:
        before = time.time() - self._rules.max_age_s
        file.forget(before=before, max_rows=self._rules.max_rows)

    def _open(self) -> LedgerFile:
        try:
            return LedgerFile(self._path)
        except sqlite3.Error as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            return LedgerFile(self._path)

    def _tell(self, error: Exception) -> None:
        if not self._is_failing:
            logger.error("the ledger %s cannot be used now: %s", self._path, error)
        self._is_failing = True

    def _set_aside(self, error: Exception) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        aside = f"{self._path.name}.damaged-{time.time_ns()}"
        try:
            for suffix in ("", "-wal", "-shm"):
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.rename(part.with_name(aside + suffix))
        except OSError as obstacle:
            self._tell(obstacle)
            return
        logger.error(
            "the ledger %s is damaged (%s): it lies in %s now, and a new one begins",
            self._path,
            error,
            aside,
        )


def _is_damage(error: Exception) -> bool:
    # SQLite's other errors are subclasses: locked, full, misused.
    return type(error) is sqlite3.DatabaseError
