"""The serving process: listen, load, tell that it is ready, drain, end."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

import uvicorn

from compression.events import OnProgress
from gateway.admission.connection import patient_protocol
from gateway.api.service import Service
from gateway.app import Application, create_service
from gateway.launch import Launch
from gateway.listening import listen, warn_if_open
from gateway.pool.state import Snapshot
from gateway.settings import Settings
from gateway.shadow.upkeep import again_and_again

EXIT_INTERRUPTED = 130

_LAST_BYTES_S = 5.0
"""After the engines have stopped, clients get this long to take the rest of their replies."""


class Audience(Protocol):
    """Who is told how serving goes; :class:`gateway.terminal.Terminal` is the real one."""

    @property
    def on_progress(self) -> OnProgress:
        """Return what takes progress events."""

    def announce(self, base_url: str, snapshots: list[Snapshot]) -> None:
        """Say that the models are ready at that address."""


async def serve(settings: Settings, audience: Audience, *, launch: Launch | None = None) -> int:
    """Serve until a signal comes; return the exit code.

    Raises:
        StartupError: the port is taken, or a model cannot be loaded.
    """
    # 1. What can be refused at once is refused before anything long starts.
    # The port first: who starts a service twice has its ledger in use, too.
    listener = listen(settings.host, settings.port)
    try:
        service = create_service(settings, launch=launch, on_progress=audience.on_progress)
    except BaseException:
        listener.close()
        raise
    warn_if_open(listener.getsockname()[0], has_keys=service.admission.door.has_keys)
    await _restore(service)
    on_hangup = service.admission.ring.reload if settings.api_keys_file is not None else None
    with listener, _Signals(on_hangup) as signals:
        # 2. Answer from now on (/ready says 503), while the models load.
        server = _Server(Application(service), settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        loading = asyncio.create_task(service.pool.ensure_ready())
        beside = [asyncio.create_task(work) for work in _work_beside(service)]
        stopping = asyncio.create_task(signals.first.wait())
        try:
            # 3. Load, say so, wait.
            await asyncio.wait({loading, stopping, serving}, return_when="FIRST_COMPLETED")
            was_ready = loading.done()
            if was_ready:
                loading.result()
                # What is there now stays; walking all of it would hold up every stream for 20 ms.
                gc.collect()
                gc.freeze()
                audience.announce(_base_url(settings.host, listener), service.pool.snapshots())
            await asyncio.wait({stopping, serving}, return_when="FIRST_COMPLETED")
        finally:
            # 4. Drain and end.
            loading.cancel()
            stopping.cancel()
            for task in beside:
                task.cancel()
            await _shut_down(service, server, serving, signals)
            await asyncio.gather(loading, stopping, *beside, return_exceptions=True)
            for keeper in service.keepers:
                await keeper.close()
            await service.judge.close()
            if service.tracing is not None:
                await asyncio.to_thread(service.tracing.close)
    return 0 if was_ready or not signals.was_interrupt else EXIT_INTERRUPTED


async def _restore(service: Service) -> None:
    """Take up where ladders stood before the last end; those that nobody keeps are forgotten."""
    if service.judge.ledger is not None:
        await service.judge.ledger.forget_ladders(but=[each.model for each in service.keepers])
    for keeper in service.keepers:
        await keeper.restore()


def _work_beside(service: Service) -> list[Coroutine[Any, Any, None]]:
    """Return what goes on while requests are served."""
    works = (service.pool.tend, service.live.run, service.judge.run)
    keeping = [keeper.run() for keeper in service.keepers]
    return [*(again_and_again(work) for work in works), service.shadow.run(), *keeping]


async def _shut_down(
    service: Service, server: "_Server", serving: asyncio.Task[None], signals: "_Signals"
) -> None:
    pool = service.pool
    pool.drain()
    server.should_exit = True
    await service.shadow.close()
    comparing = asyncio.create_task(service.comparisons.close())
    idle = asyncio.create_task(pool.wait_idle())
    hurried = asyncio.create_task(signals.second.wait())
    drain_s = service.settings.drain_s
    await asyncio.wait({idle, hurried}, timeout=drain_s, return_when="FIRST_COMPLETED")
    is_hurried = hurried.done()
    # Streams that are still open end here with an error event, not in silence.
    closing = asyncio.create_task(pool.close(0 if is_hurried or not idle.done() else None))
    await asyncio.wait({closing, hurried}, return_when="FIRST_COMPLETED")
    if not closing.done():
        await pool.close(0)
    await closing
    await asyncio.wait({serving, hurried}, timeout=_LAST_BYTES_S, return_when="FIRST_COMPLETED")
    server.force_exit = True
    await serving
    await asyncio.wait({comparing, hurried}, return_when="FIRST_COMPLETED")
    comparing.cancel()
    await asyncio.gather(comparing, return_exceptions=True)
    await service.admission.close()
    for task in (idle, hurried):
        task.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its own ideas about signals."""

    def __init__(self, app: Application, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=patient_protocol(settings.head_timeout_s, settings.write_timeout_s),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # who is local must not be a header's word
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Signals:
    """SIGTERM and SIGINT as events: the first one drains, the second one hurries.

    SIGHUP does what it is told to; without that it ends the process as it always did.
    """

    def __init__(self, on_hangup: Callable[[], None] | None) -> None:
        self._on_hangup = on_hangup
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.was_interrupt = False

    def __enter__(self) -> "_Signals":
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if self._on_hangup is not None:
            loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        return self

    def __exit__(self, *exc: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if self._on_hangup is not None:
            loop.remove_signal_handler(signal.SIGHUP)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.first.is_set():
            self.second.set()
            return
        self.was_interrupt = number == signal.SIGINT
        self.first.set()


def _base_url(host: str, listener: socket.socket) -> str:
    port = listener.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 (no bind here)
    return f"http://{shown}:{port}"
