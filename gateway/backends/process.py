"""One engine that is a child process: watched until it is ready, asked whether it gets on."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Protocol

from gateway.backends.child import ChildProcess, OnLine, ending
from gateway.backends.pulse import HealthPulse, Pulse
from gateway.backends.resident import cpu_s, resident_bytes
from gateway.errors import ChildFailed
from gateway.logs import FIELDS
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

GIVEN_UP_GRACE_S = 20.0
"""How long an engine that has told that it does not start may take to end; vLLM takes 4 s and more
on a busy machine."""


class EngineLog(Protocol):
    """Makes sense of an engine's log."""

    @property
    def given_up(self) -> asyncio.Event:
        """Return what is set once the engine tells that it does not start."""

    @property
    def cause(self) -> str | None:
        """Return what ended the engine; None if the log does not tell."""

    def hear(self, line: str) -> None:
        """Take one line."""

    def settle(self) -> None:
        """Take note that the engine is ready: errors of the start are over."""


class EngineProcess:
    """An engine that is a child process; ready once :meth:`start` has returned.

    One that is begun before it is known what it serves is ready after :meth:`serve`.
    """

    def __init__(
        self,
        child: ChildProcess,
        client: EngineClient,
        *,
        backend: str,
        pulse: Pulse,
        log: EngineLog | None = None,
    ) -> None:
        self._child = child
        self._pulse = pulse
        self._log = log
        self.client = client
        self.backend = backend

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        client: EngineClient,
        *,
        backend: str,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
        pulse: Pulse | None = None,
        log: EngineLog | None = None,
        niceness: int = 0,
        processors: Set[int] | None = None,
    ) -> "EngineProcess":
        """Start an engine and wait until it answers that it is well.

        ``processors`` are those that it and all it starts are held to; None: ours.

        Raises:
            ChildFailed: it ended or stayed silent; its last words are in the message.
        """
        engine = await cls._begin(
            command,
            client,
            backend=backend,
            environment=environment,
            pulse=pulse,
            log=log,
            niceness=niceness,
            processors=processors,
        )
        await engine._settle(timeout_s)
        return engine

    @classmethod
    async def begin(
        cls, command: Sequence[str], client: EngineClient, *, backend: str, niceness: int
    ) -> "EngineProcess":
        """Start an engine that is to be told on its standard input what it serves.

        Raises:
            ChildFailed: it cannot be started.
        """
        return await cls._begin(command, client, backend=backend, niceness=niceness, is_told=True)

    @classmethod
    async def _begin(
        cls,
        command: Sequence[str],
        client: EngineClient,
        *,
        backend: str,
        environment: Mapping[str, str] | None = None,
        pulse: Pulse | None = None,
        log: EngineLog | None = None,
        niceness: int,
        processors: Set[int] | None = None,
        is_told: bool = False,
    ) -> "EngineProcess":
        forward = _forward_to_log(client.served_name, log)
        child = await ChildProcess.start(
            command,
            on_stdout=forward,
            on_stderr=forward,
            environment=environment,
            niceness=niceness,
            processors=processors,
            is_told=is_told,
        )
        return cls(child, client, backend=backend, pulse=pulse or HealthPulse(client), log=log)

    async def serve(self, directory: Path, timeout_s: float) -> None:
        """Tell an engine that was begun what it serves, and wait until it is well.

        Raises:
            ChildFailed: it ended or stayed silent; its last words are in the message.
        """
        self._child.tell(str(directory))
        await self._settle(timeout_s)

    @property
    def pid(self) -> int:
        """Return the engine's process id."""
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        """Return whether its process is gone."""
        return self._child.has_ended

    @property
    def last_words(self) -> str:
        """Return what ended the engine, as far as its log tells, else the log's last line."""
        return (self._log.cause if self._log else None) or self._child.last_words

    async def is_healthy(self, timeout_s: float, *, is_busy: bool) -> bool:
        """Return whether the engine shows that it gets on."""
        return await self._pulse.beats(timeout_s, is_busy=is_busy)

    def resident_bytes(self) -> int:
        """Return the memory that the engine and its children hold."""
        return resident_bytes(self._child.pid)

    def cpu_s(self) -> float:
        """Return the processor time that the engine has used, in seconds."""
        return cpu_s(self._child.pid)

    async def wait(self) -> int:
        """Wait until the engine has ended and return its exit code."""
        return await self._child.wait()

    async def stop(self, grace_s: float) -> None:
        """End the engine and drop all connections to it."""
        await self._child.stop(grace_s)
        await self.client.aclose()

    async def _settle(self, timeout_s: float) -> None:
        try:
            await self._become_ready(timeout_s)
            if self._log is not None:
                self._log.settle()
        except BaseException:
            await self.stop(0)
            raise

    async def _become_ready(self, timeout_s: float) -> None:
        ended = asyncio.ensure_future(self.wait())
        healthy = asyncio.ensure_future(self.client.wait_healthy(self._child.has_spoken))
        stuck = asyncio.ensure_future(self._stay_after_giving_up())
        outcomes: set[asyncio.Future[Any]] = {ended, healthy, stuck}
        done: set[asyncio.Future[Any]] = set()
        try:
            # What writes makes progress: a large model may take longer than any fixed time.
            while not done and (left_s := self._patience_left_s(timeout_s)) > 0:
                done, _ = await asyncio.wait(
                    outcomes, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for each in outcomes:
                each.cancel()
            await asyncio.gather(*outcomes, return_exceptions=True)
        name = self.client.served_name
        if ended in done:
            raise ChildFailed(
                f"the engine of {name} {ending(ended.result())} while it started: {self.last_words}"
            )
        if stuck in done:
            raise ChildFailed(
                f"the engine of {name} gave up while it started and did not end: {self.last_words}"
            )
        if not done:
            raise ChildFailed(
                f"the engine of {name} was neither ready nor heard for {timeout_s:g} s: "
                f"{self.last_words}"
            )

    async def _stay_after_giving_up(self) -> None:
        """Return when the engine has told that it does not start, and has had time to end."""
        given_up = asyncio.Event() if self._log is None else self._log.given_up
        await given_up.wait()
        await asyncio.sleep(GIVEN_UP_GRACE_S)

    def _patience_left_s(self, timeout_s: float) -> float:
        return self._child.last_heard + timeout_s - time.monotonic()


def _forward_to_log(name: str, log: EngineLog | None) -> OnLine:
    def forward(line: str) -> None:
        if log is not None:
            log.hear(line)
        logger.info("[%s] %s", name, line, extra={FIELDS: {"engine": name}})

    return forward
