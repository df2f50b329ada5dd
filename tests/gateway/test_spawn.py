"""How children are started: beside the event loop, bound to this process, and never left alone."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.backends.child import ChildProcess
from gateway.errors import ChildFailed
from tests.gateway.harness import eventually, is_alive

_PATIENCE_S = 60.0
"""For what would never come; a busy machine may take its time."""

_SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


async def start(command: list[str], lines: list[str] | None = None) -> ChildProcess:
    """Start a child whose lines are kept."""
    kept = [] if lines is None else lines
    return await ChildProcess.start(command, on_stdout=kept.append, on_stderr=kept.append)


class SlowStart:
    """Stands where ``Popen`` does and starts the real one only when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_asked, self.may_start = threading.Event(), threading.Event()
        self.started: list[subprocess.Popen[bytes]] = []
        self._popen = subprocess.Popen
        monkeypatch.setattr("gateway.backends.spawn.subprocess.Popen", self)

    def __call__(self, *words: Any, **options: Any) -> "subprocess.Popen[bytes]":
        self.is_asked.set()
        if not self.may_start.wait(_PATIENCE_S):
            raise OSError("nobody let it start")
        self.started.append(self._popen(*words, **options))
        return self.started[-1]

    async def begin(self, command: list[str], lines: list[str]) -> "asyncio.Task[ChildProcess]":
        """Return a start that has come as far as the system."""
        starting = asyncio.create_task(start(command, lines))
        await asyncio.to_thread(self.is_asked.wait, _PATIENCE_S)
        return starting


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_loop_goes_on_while_a_child_starts(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that takes long to start a process holds up no stream: the loop lets it start."""
    slow = SlowStart(monkeypatch)

    async def check() -> None:
        lines: list[str] = []
        starting = await slow.begin([sys.executable, "-c", "print('here')"], lines)
        assert not starting.done()
        slow.may_start.set()
        child = await starting
        assert await child.wait() == 0
        assert lines == ["here"]
        await child.stop(0)

    run(check())


def test_one_that_is_not_wanted_any_more_is_gone_when_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who gives up waiting for a start leaves no process behind."""
    slow = SlowStart(monkeypatch)

    async def check() -> None:
        starting = await slow.begin(_SLEEP, [])
        starting.cancel()
        await asyncio.wait([starting], timeout=0.05)
        assert not starting.done()
        slow.may_start.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert slow.started[0].returncode == -signal.SIGKILL

    asyncio.run(check())


def test_one_that_nobody_waits_for_is_ended_once_it_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who gives up waiting for the end of a start, too, leaves no process behind either."""
    slow = SlowStart(monkeypatch)

    async def check() -> None:
        starting = await slow.begin(_SLEEP, [])
        for _ in range(2):
            starting.cancel()
            await asyncio.wait([starting], timeout=0.05)
        assert starting.cancelled()
        slow.may_start.set()
        async with asyncio.timeout(_PATIENCE_S):
            while not slow.started or is_alive(slow.started[0].pid):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(check())


def test_too_many_threads_are_a_child_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who starts children knows one error, whatever the system has too little of; none is left."""
    slow = SlowStart(monkeypatch)
    slow.may_start.set()
    begin, left = threading.Thread.start, 0

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        if not left:
            raise RuntimeError("can't start new thread")
        left -= 1
        begin(thread)

    async def check() -> None:
        nonlocal left
        for allowed in range(3):
            with monkeypatch.context() as context:
                context.setattr(threading.Thread, "start", refuse)
                left = allowed
                with pytest.raises(ChildFailed, match="can't start new thread"):
                    await start(_SLEEP)
        assert len(slow.started) == 2
        await asyncio.to_thread(eventually, lambda: not any(map(is_alive, pids())))

    def pids() -> list[int]:
        return [each.pid for each in slow.started]

    asyncio.run(check())


def test_all_that_a_child_writes_comes_in_order() -> None:
    """More than pipes and the loop hold at a time, and the last line without an end."""
    code = "print('\\n'.join(str(each) for each in range(400_000)), end='')"

    async def check() -> None:
        lines: list[str] = []
        child = await start([sys.executable, "-c", code], lines)
        async with asyncio.timeout(_PATIENCE_S):
            while len(lines) < 400_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await child.wait() == 0
        assert lines == [str(each) for each in range(400_000)]
        await child.stop(0)

    asyncio.run(check())


def test_it_is_the_program_itself_and_no_other_process() -> None:
    """What starts it becomes it: its id, its session, and none of the signals Python ignores."""

    async def check() -> None:
        lines: list[str] = []
        child = await start(["cat", "/proc/self/status", "/proc/self/stat"], lines)
        assert await child.wait() == 0
        await child.stop(0)
        told = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert (told["Name"], int(told["Pid"])) == ("cat", child.pid)
        assert int(told["PPid"]) == os.getpid()
        assert int(lines[-1].split()[5]) == child.pid
        assert not int(told["SigIgn"], 16) & 1 << (signal.SIGPIPE - 1)

    asyncio.run(check())


def test_what_is_no_program_says_so(tmp_path: Path) -> None:
    """A file that may be run and cannot ends at once, with the reason in its log."""
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x00")
    broken.chmod(0o755)

    async def check() -> None:
        child = await start([str(broken)])
        assert await child.wait() == 127
        assert child.last_words == f"cannot start {broken}: Exec format error"
        await child.stop(0)

    asyncio.run(check())


def test_a_child_dies_with_who_started_it() -> None:
    """SIGKILL leaves nobody time to end a child: the kernel does, and not before."""
    code = (
        "import asyncio\n"
        "from tests.gateway.test_spawn import _SLEEP, start\n"
        "async def main():\n"
        "    child = await start(_SLEEP)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
    eventually(lambda: not is_alive(pid))
