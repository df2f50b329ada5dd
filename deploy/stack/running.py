"""Runs the stack's servers: start all, wait until they are ready, end all."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import httpx

from deploy.stack.servers import Server
from gateway.backends.child import ChildProcess, OnLine
from gateway.errors import ChildFailed

END_GRACE_S = 60.0
"""Longer than the gateway takes for running requests (``drain_s``, 30) and its last bytes."""

EXIT_INTERRUPTED = 130
_POLL_S = 0.1


async def run_stack(servers: Sequence[Server], on_ready: Callable[[], None]) -> int:
    """Run until a signal comes; return the exit code. A second signal ends at once.

    Raises:
        ChildFailed: a server could not be started, or ended by itself.
    """
    with contextlib.ExitStack() as files, _listening() as signals:
        children: dict[str, ChildProcess] = {}
        try:
            for server in servers:
                children[server.name] = await _start(server, files)
            return await _watch(servers, children, signals, on_ready)
        finally:
            await _end(list(children.values()), signals)


@dataclass(frozen=True)
class _Signals:
    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def _listening() -> Iterator[_Signals]:
    loop = asyncio.get_running_loop()
    signals = _Signals()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, signals.take)
    try:
        yield signals
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _start(server: Server, files: contextlib.ExitStack) -> ChildProcess:
    on_line = _show(server.name)
    if server.log is not None:
        on_line = _keep(files.enter_context(server.log.open("w", encoding="utf-8")))
    # Each ends in order if this process is killed.
    return await ChildProcess.start(
        server.command, on_stdout=on_line, on_stderr=on_line, death_signal=signal.SIGTERM
    )


def _show(name: str) -> OnLine:
    return lambda line: print(f"{name} | {line}", flush=True)


def _keep(file: TextIO) -> OnLine:
    return lambda line: print(line, file=file, flush=True)


async def _watch(
    servers: Sequence[Server],
    children: dict[str, ChildProcess],
    signals: _Signals,
    on_ready: Callable[[], None],
) -> int:
    stopping = asyncio.create_task(signals.first.wait())
    ending = {asyncio.create_task(_report_end(server, children[server.name])) for server in servers}
    waiting = asyncio.create_task(_wait_ready(servers))
    try:
        await asyncio.wait({stopping, waiting, *ending}, return_when="FIRST_COMPLETED")
        was_ready = waiting.done()
        if was_ready:
            waiting.result()
            on_ready()
            await asyncio.wait({stopping, *ending}, return_when="FIRST_COMPLETED")
        if not stopping.done():
            next(task for task in ending if task.done()).result()
        return 0 if was_ready else EXIT_INTERRUPTED
    finally:
        tasks = {stopping, waiting, *ending}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _report_end(server: Server, child: ChildProcess) -> None:
    code = await child.wait()
    where = f"; its log is {_short(server.log)}" if server.log else ""
    raise ChildFailed(f"{server.name} ended with code {code}: {child.last_words}{where}")


async def _wait_ready(servers: Sequence[Server]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
        await asyncio.gather(*(_ready(server, client) for server in servers))


async def _ready(server: Server, client: httpx.AsyncClient) -> None:
    while True:
        with contextlib.suppress(httpx.TransportError):
            if (await client.get(f"{server.url}{server.ready_path}")).status_code == 200:
                return
        await asyncio.sleep(_POLL_S)


async def _end(children: Sequence[ChildProcess], signals: _Signals) -> None:
    if not children:
        return
    stops = {asyncio.create_task(child.stop(END_GRACE_S)) for child in children}
    hurried = asyncio.create_task(_hurry(stops, signals))
    await asyncio.wait(stops)
    hurried.cancel()
    await asyncio.gather(*(child.wait() for child in children))


async def _hurry(stops: set[asyncio.Task[None]], signals: _Signals) -> None:
    await signals.second.wait()
    for stop in stops:
        stop.cancel()  # its last act is to kill the group


def _short(path: Path) -> str:
    home = str(Path.home())
    return str(path).replace(home, "~", 1) if str(path).startswith(home + "/") else str(path)
