"""Child processes: logs, jobs with JSON lines, and ends that leave nothing behind."""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from compression.events import OnProgress, Progress, ignore
from compression.prepare import prepare
from gateway.backends import embedded
from gateway.backends.child import ChildProcess
from gateway.backends.process import EngineProcess
from gateway.errors import ChildFailed, LoadRefused
from gateway.job import run_job
from gateway.launch import Launcher
from gateway.model_settings import VariantSettings
from gateway.settings import load_settings
from gateway.specs import make_specs
from gateway.upstream import EngineClient
from tests.gateway.harness import eventually, is_alive, until
from tests.ports import free_port


def job(code: str) -> tuple[dict[str, Any], list[Progress]]:
    """Run a job of that code; return its result and its progress."""
    progress: list[Progress] = []
    return asyncio.run(run_job(["-c", code], progress.append)), progress


def test_job_reports_and_returns() -> None:
    """Progress is handed on, prints of libraries are no events, the last event is the result."""
    result, progress = job(
        "print('hello from a library')\n"
        'print(\'{"event":"progress","stage":"hash","done":1,"total":2,"unit":"bytes"}\')\n'
        'print(\'{"event":"ready","directory":"/x","cached":true,"manifest":null}\')'
    )
    assert result == {"directory": "/x", "cached": True, "manifest": None}
    assert progress == [Progress("hash", 1, 2, "bytes")]


def test_long_result_is_whole() -> None:
    """A report of megabytes in one line arrives."""
    result, _ = job(
        "import json; print(json.dumps({'event': 'compared', 'report': 'x' * 3000000}))"
    )
    assert len(result["report"]) == 3000000


def test_refusal_is_in_the_childs_own_words() -> None:
    """An error event becomes a refusal with its one line."""
    code = 'print(\'{"event":"error","kind":"RecipeError","message":"no such recipe"}\'); exit(2)'
    with pytest.raises(LoadRefused, match=r"^no such recipe$"):
        job(code)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('last words')", "ended with code 1: last words"),
        ("import os; os.kill(os.getpid(), 9)", r"was killed by SIGKILL \(out of memory\?\)"),
        ("pass", "ended without a result"),
    ],
)
def test_crash_is_told_with_the_last_words(code: str, message: str) -> None:
    """A crash says how the child ended and what it said last."""
    with pytest.raises(ChildFailed, match=message):
        job(code)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["compression", "prepare", "--no"], "compression prepare"),
        (["json.tool", "--no"], "json.tool"),
    ],
)
def test_crash_names_module_and_verb(words: list[str], name: str) -> None:
    """A crashed job is called by its module and verb, without its flags."""
    with pytest.raises(ChildFailed, match=rf"^`{name}` ended with code 2"):
        asyncio.run(run_job(["-m", *words], lambda _: None))


def test_job_that_lacks_a_library() -> None:
    """A child that dies for want of the numeric libraries is a refusal that names the extra."""
    code = "raise ModuleNotFoundError(\"No module named 'torch'\")"
    with pytest.raises(LoadRefused, match=r"^this needs the embedded extra: pip install"):
        job(code)


def test_missing_library_is_seen_before_the_child_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No child is started where it could only die."""
    monkeypatch.setattr("gateway.job.find_spec", lambda name: None)
    trace = tmp_path / "trace"
    with pytest.raises(LoadRefused, match="embedded extra"):
        job(f"open({str(trace)!r}, 'w')")
    assert not trace.exists()


def test_cancelled_job_may_clean_up(tmp_path: Path) -> None:
    """A job that is cancelled gets SIGTERM and the time to remove what it has half written."""
    half = tmp_path / "half"
    code = (
        "import signal, sys, time, pathlib\n"
        f"half = pathlib.Path({str(half)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (half.unlink(), sys.exit(143)))\n"
        "half.touch()\n"
        "time.sleep(60)"
    )

    async def run() -> None:
        task = asyncio.create_task(run_job(["-c", code], lambda _: None))
        await until(half.exists)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert not half.exists()


_BUILD_THAT_HANGS = """
import sys, threading, time

def tell():
    for count in range(10_000):
        print(count, flush=True)
        if is_hanging.wait(0.1):
            return

is_hanging = threading.Event()
threading.Thread(target=tell, daemon=True).start()
import compression.build
from compression.__main__ import main

def hang(*_):
    is_hanging.set()
    time.sleep(600)

compression.build.convert_linear = hang
sys.exit(main(["prepare", "--model=MODEL", "--recipe=int8-fast"]))
"""


def test_a_build_that_hangs_is_ended(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told where it stood, and leaves nothing half written; another one then succeeds."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path))
    progress: list[Progress] = []
    code = _BUILD_THAT_HANGS.replace("MODEL", str(tiny_llama_dir))
    words = (
        r"` made no progress for 4 s and was ended \(its last word: quantize 3 of 20 tensors "
        r"model\..*\): see what holds it up, or raise prepare_timeout_s$"
    )
    with pytest.raises(ChildFailed, match=words):
        asyncio.run(run_job(["-c", code], progress.append, stall_s=4))
    assert progress[-1].stage == "quantize"
    assert [each.suffix for each in (tmp_path / "store").iterdir()] == [".lock"]
    built = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    assert built.manifest is not None


def test_the_same_words_again_are_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that repeats itself and ignores SIGTERM is killed with its children; others go on."""
    monkeypatch.setattr("gateway.job.JOB_GRACE_S", 0.2)
    event = '{"event":"progress","stage":"fetch","done":%d,"total":0,"unit":"bytes"}'
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), child.pid, file=sys.stderr, flush=True)\n"
        "for count in range(100):\n"
        f"    print({event!r} % (count * IS_MOVING), flush=True)\n"
        "    time.sleep(0.3)\n"
        "    if IS_MOVING and count == 8: break\n"
        "child.kill()\n"
        'print(\'{"event":"ready"}\', flush=True)\n'
    )
    pids: list[int] = []

    def note(_: object, line: str) -> None:
        pids.extend(map(int, line.split()))

    monkeypatch.setattr("gateway.job.logger.info", note)
    with pytest.raises(ChildFailed, match=r"no progress for 2 s .*its last word: fetch 0 of \? "):
        asyncio.run(run_job(["-c", code.replace("IS_MOVING", "0")], ignore, stall_s=2))
    assert len(pids) == 2
    eventually(lambda: not any(map(is_alive, pids)))
    moving = code.replace("IS_MOVING", "1")
    assert asyncio.run(run_job(["-c", moving], ignore, stall_s=2)) == {}


def test_stop_kills_the_whole_group(tmp_path: Path) -> None:
    """A child that ignores SIGTERM is killed after the grace, with its own children."""
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)"
    )

    async def run() -> tuple[int, int]:
        pids: list[int] = []
        child = await ChildProcess.start(
            [sys.executable, "-c", code],
            on_stdout=lambda line: pids.append(int(line)),
            on_stderr=lambda line: None,
        )
        await until(lambda: bool(pids))
        await child.stop(0.2)
        await child.stop(0.2)
        assert os.getpgid(0) != child.pid
        return child.pid, pids[0]

    pids = asyncio.run(run())
    eventually(lambda: not any(map(is_alive, pids)))


def session_weight(pid: int) -> str:
    """Return how a process's session is weighed, as ``nice 0``; empty where none is."""
    try:
        return Path(f"/proc/{pid}/autogroup").read_text().partition(" ")[2].strip()
    except OSError:
        return ""


@pytest.mark.skipif(not session_weight(os.getpid()), reason="sessions have no weights here")
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_child_that_stands_back_does_so_among_all_sessions(run: Callable[..., None]) -> None:
    """Its niceness is its session's weight, too; ours and that of other children stay."""

    async def standing(niceness: int) -> tuple[str, int]:
        child = await ChildProcess.start(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            on_stdout=lambda line: None,
            on_stderr=lambda line: None,
            niceness=niceness,
        )
        try:
            return session_weight(child.pid), os.getpriority(os.PRIO_PROCESS, child.pid)
        finally:
            await child.stop(0)

    async def check() -> None:
        before = session_weight(os.getpid())
        assert await standing(7) == ("nice 7", os.nice(0) + 7)
        assert await standing(0) == ("nice 0", os.nice(0))
        assert session_weight(os.getpid()) == before

    run(check())


def test_command_that_does_not_exist() -> None:
    """A program that cannot be started is named."""

    async def run() -> None:
        await ChildProcess.start(["/no/such"], on_stdout=print, on_stderr=print)

    with pytest.raises(ChildFailed, match="cannot start /no/such: No such file"):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no memory')", "ended with code 1 while it started: no memory"),
        ("import time; time.sleep(60)", "was neither ready nor heard for 1.5 s: it wrote no log"),
        (
            "import sys, time\n"
            "for n in range(5): print(n, file=sys.stderr, flush=True); time.sleep(0.4)\n"
            "sys.exit('it made progress')",
            "ended with code 1 while it started: it made progress",
        ),
    ],
)
def test_engine_that_does_not_start(code: str, message: str) -> None:
    """An engine that ends or hangs while it starts is told apart, and is gone."""

    async def run() -> None:
        client = EngineClient("http://127.0.0.1:9", served_name="m@v", read_timeout_s=1)
        command = [sys.executable, "-c", code]
        await EngineProcess.start(
            command, client, backend="fake", timeout_s=1.5 if "time" in code else 20
        )

    with pytest.raises(ChildFailed, match=message):
        asyncio.run(run())


def test_an_engine_that_speaks_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in its log ends the pause between two questions whether it is well."""
    monkeypatch.setattr("gateway.upstream._POLL_FIRST_S", 60)
    port = free_port()
    code = (
        "import http.server, sys, time\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        f"server = http.server.HTTPServer(('127.0.0.1', {port}), Handler)\n"
        "time.sleep(0.3); print('serving', flush=True); server.serve_forever()"
    )

    async def run() -> None:
        client = EngineClient(f"http://127.0.0.1:{port}", served_name="m@v", read_timeout_s=20)
        command = [sys.executable, "-c", code]
        async with asyncio.timeout(30):
            engine = await EngineProcess.start(command, client, backend="fake", timeout_s=20)
        await engine.stop(0)

    asyncio.run(run())


def test_command_line_of_the_embedded_engine() -> None:
    """Every setting of a model reaches its engine; what is not set is left out."""
    words = embedded.command(
        Path("/m"),
        served_name="a@int4",
        port=5,
        settings=VariantSettings(
            model="x",
            threads=3,
            max_model_len=64,
            max_num_seqs=4,
            enable_prefix_caching=False,
        ),
        kv_cache_memory_bytes=1 << 20,
    )
    assert " ".join(words[1:]) == (
        "-m gateway.engine --model=/m --served-model-name=a@int4 --host=127.0.0.1 --port=5 "
        "--threads=3 --max-model-len=64 --max-num-seqs=4 --kv-cache-memory-bytes=1048576 "
        "--no-enable-prefix-caching"
    )
    bare = embedded.command(
        Path("/m"),
        served_name="a@int4",
        port=5,
        settings=VariantSettings(model="x"),
        kv_cache_memory_bytes=None,
    )
    assert "--threads" not in " ".join(bare)


@pytest.mark.parametrize(
    ("model", "shadow", "is_measured"),
    [
        ({}, {}, False),
        ({}, {"rate": 0.1}, True),
        ({"recipe": "full"}, {"rate": 0.1}, False),
        ({"shadow": "off"}, {"rate": 0.1}, False),
        ({}, {"rate": 0.1, "verdict": {"tolerance": {"all": 0.02}}}, False),
    ],
)
def test_what_is_scored_is_measured_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    shadow: dict[str, Any],
    is_measured: bool,
) -> None:
    """The child is asked for the fidelity where verdicts need to know what is usual."""
    asked: list[str] = []
    limits: list[float] = []

    async def run(
        words: list[str], on_progress: OnProgress, *, niceness: int, stall_s: float
    ) -> dict[str, Any]:
        asked.extend(words)
        limits.append(stall_s)
        return {"directory": "/nowhere", "manifest": None, "digest": None}

    monkeypatch.setattr("gateway.launch.run_job", run)
    fields = {"models": {"a": {"model": "x", **model}}, "shadow": shadow, "prepare_timeout_s": 7}
    settings = load_settings(None, fields, {})
    spec = make_specs(settings)[0].variants[0]
    asyncio.run(Launcher(settings).prepare(spec, ignore))
    assert limits == [7]
    assert ("--fidelity" in asked) is is_measured
    assert "--digest" not in asked  # which is for references alone
    asyncio.run(Launcher(settings).prepare(replace(spec, is_reference=True), ignore))
    assert "--digest" in asked


def test_launcher_refuses_a_missing_model() -> None:
    """The real compression child refuses a directory that is not there, in one line."""
    settings = load_settings(None, {"models": {"a": {"model": "/no/such"}}}, {})
    spec = make_specs(settings)[0].variants[0]
    with pytest.raises(LoadRefused, match="/no/such"):
        asyncio.run(Launcher(settings).prepare(spec, lambda _: None))
