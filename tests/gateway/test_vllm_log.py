"""The log of a starting vLLM: how far it is, and what really ended it."""

import asyncio
import sys
import time

import pytest

from compression.events import Progress
from gateway.backends.process import EngineProcess
from gateway.backends.vllm_log import RECENT_S, VllmLog
from gateway.errors import ChildFailed
from gateway.upstream import EngineClient
from tests.gateway.harness import eventually, is_alive

# As vLLM 0.32 writes them; paths are shortened.
STARTING = """\
(Worker pid=26515) INFO 11-22 12:49:46 [cpu_model_runner.py:68] Starting to load model /m...
Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  7.09it/s]
(Worker pid=26515) INFO 11-22 12:49:47 [default_loader.py:501] Loading weights took 0.15 seconds
(EngineCore pid=26403) INFO 11-22 12:49:48 [core.py:402] init engine (profile) took 0.40 s
"""
DYING = """\
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063]   File "/site-packages/torch/_ops.py", line 1368, in __getattr__
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063]     raise AttributeError(
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063] AttributeError: '_C' object has no attribute 'cpu_gemm_wna16'
(EngineCore pid=29097) ERROR 11-22 12:59:35 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=29097) ERROR 11-22 12:59:35 [core.py:1512] RuntimeError: Worker failed with error 'no attribute', please check
(APIServer pid=29002) RuntimeError: Engine core initialization failed. See root cause above.
"""  # noqa: E501
# With CXX=/bin/false. The worker loses its SystemExit in a callback, and its parents wait for it.
HANGING = """\
(Worker pid=10119) ERROR 11-23 05:41:54 [multiproc_executor.py:1063]     raise exc.InvalidCxxCompiler
(Worker pid=10119) ERROR 11-23 05:41:54 [multiproc_executor.py:1063] torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, '/bin/false')
(EngineCore pid=10008) ERROR 11-23 05:41:54 [core.py:1510] EngineCore failed to start.
(EngineCore pid=10008) ERROR 11-23 05:41:54 [core.py:1510] RuntimeError: Worker failed with error 'InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, '/bin/false')', please check the stack trace above for the root cause
Exception ignored in: <function WeakValueDictionary.__init__.<locals>.remove at 0x7fa2ee589620>
SystemExit:
"""  # noqa: E501
# With a compiler that only tells its version; the command line and the traceback are shortened.
NOT_COMPILING = """\
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063]     raise exc.CppCompileError(cmd, output) from e
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] torch._inductor.exc.InductorError: CppCompileError: C++ compile error
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] 
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] Command:
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] badcxx /tmp/header.hpp -O3 -Wno-error
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] 
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] Output:
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] badcxx: fatal error: no disk
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] compilation ended by an error
(Worker pid=14402) ERROR 11-23 06:03:25 [multiproc_executor.py:1063] Traceback (most recent call last):
"""  # noqa: E501


def _read(text: str) -> tuple[VllmLog, list[Progress]]:
    told: list[Progress] = []
    log = VllmLog("m@int4", told.append)
    for line in text.splitlines():
        log.hear(line)
    return log, told


def test_progress() -> None:
    """Weights are counted, and each later step is told once it begins."""
    log, told = _read(STARTING)
    assert [(each.done, each.total) for each in told if each.total] == [(0, 2), (1, 2)]
    words = [each.detail.removeprefix("vLLM of m@int4: ") for each in told if not each.total]
    assert words == ["loads the weights", "has loaded the weights", "is warm"]
    assert log.cause is None


def test_the_cause_is_told_and_not_its_consequences() -> None:
    """The innermost process knows why; what others make of it says nothing."""
    log, _ = _read(STARTING + DYING)
    assert log.cause == "AttributeError: '_C' object has no attribute 'cpu_gemm_wna16'"


def test_the_compilers_own_words_are_told() -> None:
    """That something was not compiled helps nobody; the first error of the compiler may."""
    for text in (NOT_COMPILING, NOT_COMPILING * 2):
        log, _ = _read(text)
        head = (
            "InductorError: CppCompileError: C++ compile error: badcxx: fatal error: no disk: give"
        )
        assert (log.cause or "").startswith(head)


def test_of_a_ready_engine_only_the_last_errors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start or some request told long ago did not end the engine now."""
    log, _ = _read(DYING)
    log.settle()
    told = [log.cause]
    log.hear("(EngineCore pid=2) ERROR 11-22 12:00:00 [core.py:1] ValueError: new")
    told.append(log.cause)
    later = time.monotonic() + RECENT_S + 1
    monkeypatch.setattr("time.monotonic", lambda: later)
    told.append(log.cause)
    assert told == [None, "ValueError: new", None]


def test_errors_of_the_outermost_process_count_where_there_are_no_others() -> None:
    """An argument that is refused never reaches a worker."""
    line = "(APIServer pid=1) ValueError: max_model_len 9999 is too long"
    assert _read(line)[0].cause == "ValueError: max_model_len 9999 is too long"
    assert _read("ValueError: bare")[0].cause == "ValueError: bare"


def test_the_field_is_told_and_not_the_count_of_fields() -> None:
    """pydantic's head line counts; the line below it has the reason."""
    log, _ = _read(
        "(APIServer pid=1) pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len (9) is too large [type=value_error, input_value=1]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )
    assert log.cause == "max_model_len (9) is too large"


def test_an_engine_that_gives_up_and_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told at once what was missing and what helps, long before its silence would be seen."""
    monkeypatch.setattr("gateway.backends.process.GIVEN_UP_GRACE_S", 0.2)
    code = (
        "import os, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('pids', os.getpid(), worker.pid, flush=True)\n"
        f"print({HANGING!r}, flush=True)\n"
        "worker.wait()"
    )
    pids: list[int] = []

    def note(_: object, name: str, line: str, **more: object) -> None:
        if line.startswith("pids"):
            pids.extend(map(int, line.split()[1:]))

    monkeypatch.setattr("gateway.backends.process.logger.info", note)

    async def start() -> None:
        client = EngineClient("http://127.0.0.1:9", served_name="m@full", read_timeout_s=1)
        log = VllmLog("m@full", lambda _: None)
        command = [sys.executable, "-c", code]
        async with asyncio.timeout(20):
            await EngineProcess.start(command, client, backend="fake", timeout_s=600, log=log)

    with pytest.raises(ChildFailed) as failed:
        asyncio.run(start())
    assert str(failed.value) == (
        "the engine of m@full gave up while it started and did not end: InductorError: "
        "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: "
        "(None, '/bin/false'): give it a C++ compiler that works (the one that CXX names, else "
        "g++), or set 'vllm_options': {enforce-eager: true}, which compiles nothing"
    )
    assert len(pids) == 2
    eventually(lambda: not any(map(is_alive, pids)))
