"""A process is started beside the event loop, by a thread that then waits for its end.

The loops of asyncio and uvloop fork on their own thread and wait there until the child has become
its program: 6 to 18 ms in which no stream moves on. What it writes is read by threads, too: no loop
then holds a descriptor that others close.
"""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_LEAST_URGENT = 19
_BOUND = Path(__file__).with_name("bound.py")
_PIECE_BYTES = 65536
_PIECES = 16
"""That a loop may still have to take from one pipe."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that leads a session of its own, and the near ends of its pipes."""

    pid: int
    processors: Set[int]
    """On which it may run."""
    stdin: IO[bytes] | None
    stdout: asyncio.StreamReader
    stderr: asyncio.StreamReader
    ended: asyncio.Future[int]
    """Its exit code, the number of a signal below 0; not to be cancelled."""


async def spawn(
    command: Sequence[str],
    *,
    death_signal: signal.Signals,
    environment: Mapping[str, str],
    niceness: int,
    processors: Set[int] | None,
    is_told: bool,
) -> Spawned:
    """Start ``command`` in ``environment``; when this process ends, it gets ``death_signal``.

    Where a sandbox forbids that it is held to ``processors`` it runs all the same. One whose start
    is cancelled is gone when that is told; who cancels twice is not kept waiting for its end.

    Raises:
        OSError: no process, or no thread beside it, can be started.
    """

    def start() -> "_Held":
        waits, goes = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_BOUND), *told, str(waits), *command],
                bufsize=0,
                stdin=subprocess.PIPE if is_told else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(waits,),
                env=dict(environment),
            )
            return _Held(process, _hold(process.pid, niceness, processors))
        finally:
            os.close(waits)
            os.close(goes)  # which lets it go on

    loop = asyncio.get_running_loop()
    told = (str(int(death_signal)), str(os.getpid()))
    keeper = _Keeper(start, loop)
    _begin(keeper)
    try:
        held = await asyncio.shield(keeper.started)
    except asyncio.CancelledError:
        keeper.started.add_done_callback(_end_unwanted)
        await asyncio.wait([keeper.started])
        if not keeper.started.cancelled() and keeper.started.exception() is None:
            await asyncio.wait([keeper.ended])
        raise
    process = held.process
    outputs, readers = [process.stdout, process.stderr], list[asyncio.StreamReader]()
    try:
        for pipe in outputs:
            readers.append(_listen(pipe, loop))
    except OSError:
        _end(process, (process.stdin, *outputs[len(readers) :]))
        raise
    stdout, stderr = readers
    return Spawned(process.pid, held.processors, process.stdin, stdout, stderr, keeper.ended)


@dataclass(frozen=True, slots=True)
class _Held:
    """A process, and the processors that it is held to."""

    process: "subprocess.Popen[bytes]"
    processors: Set[int]


def _hold(pid: int, niceness: int, processors: Set[int] | None) -> Set[int]:
    """Give a process that waits its place; return the processors on which it may run."""
    if niceness:
        lowered = os.getpriority(os.PRIO_PROCESS, 0) + niceness
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, min(_LEAST_URGENT, lowered))
    if processors is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, processors)
    return os.sched_getaffinity(pid)


class _Keeper(threading.Thread):
    """Lives as long as the child: the kernel takes the end of this thread for its parent's."""

    def __init__(self, start: Callable[[], _Held], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(name="child", daemon=True)
        self._start = start
        self._loop = loop
        self.started: asyncio.Future[_Held] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    def run(self) -> None:
        try:
            held = self._start()
        except BaseException as error:  # of whoever waits for it
            self._tell(self.started.set_exception, error)
            return
        self._tell(self.started.set_result, held)
        self._tell(self.ended.set_result, held.process.wait())

    def _tell(self, settle: Callable[..., None], outcome: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(settle, outcome)


def _listen(pipe: IO[bytes] | None, loop: asyncio.AbstractEventLoop) -> asyncio.StreamReader:
    """Return a reader of what a thread takes from a pipe."""
    reader = asyncio.StreamReader(loop=loop)
    if pipe is None:
        reader.feed_eof()
    else:
        _begin(threading.Thread(target=_pass_on, args=(pipe, reader, loop), daemon=True))
    return reader


def _pass_on(
    pipe: IO[bytes], reader: asyncio.StreamReader, loop: asyncio.AbstractEventLoop
) -> None:
    room = threading.Semaphore(_PIECES)

    def feed(piece: bytes) -> None:
        reader.feed_data(piece)
        room.release()

    with pipe, contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
        while piece := pipe.read(_PIECE_BYTES):
            room.acquire()
            loop.call_soon_threadsafe(feed, piece)
        loop.call_soon_threadsafe(reader.feed_eof)


def _begin(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        OSError: there are as many as there may be.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from None


def _end_unwanted(started: "asyncio.Future[_Held]") -> None:
    if not started.cancelled() and started.exception() is None:
        process = started.result().process
        _end(process, (process.stdin, process.stdout, process.stderr))


def _end(process: "subprocess.Popen[bytes]", pipes: Sequence[IO[bytes] | None]) -> None:
    """Kill a process with all that it started; close pipes that no thread reads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in pipes:
        if pipe is not None:
            pipe.close()
